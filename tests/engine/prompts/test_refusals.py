"""A transformer that an engine can run neither packed nor through its own modules is refused, and may come back."""

import pytest
import torch
from attached_runs import relative_error
from counted_rows import counted_rows
from live_runs import generate
from tiny_sd3 import tiny_pipeline

from segue import Engine
from tests.tolerances import ATTACHED_RUN

COMPILED = "compiled as a whole, which fixes its rows; compile its blocks instead"


def compile_in_place(pipe):
    pipe.transformer.compile(backend="eager")
    return lambda: setattr(pipe.transformer, "_compiled_call_impl", None)


def compile_as_wrapper(pipe):
    original, pipe.transformer = pipe.transformer, torch.compile(pipe.transformer, backend="eager")
    return lambda: setattr(pipe, "transformer", original)


def cache_blocks(pipe):
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig())

    def undo():
        for block in pipe.transformer.transformer_blocks:
            for name in list(block._diffusers_hook.hooks):
                block._diffusers_hook.remove_hook(name)

    return undo


def replace_forward(pipe):
    def patched_forward(*arguments, **keywords):
        raise AssertionError

    pipe.transformer.forward = patched_forward
    return lambda: vars(pipe.transformer).pop("forward")


def hook_the_whole(pipe):
    return pipe.transformer.register_forward_hook(lambda *_: None).remove


def hook_the_whole_before(pipe):
    return pipe.transformer.register_forward_pre_hook(lambda *_: None).remove


def other_network(pipe):
    original, pipe.transformer = pipe.transformer, pipe.vae
    return lambda: setattr(pipe, "transformer", original)


def no_network(pipe):
    original, pipe.transformer = pipe.transformer, None
    return lambda: setattr(pipe, "transformer", original)


REFUSED = {
    compile_in_place: (ValueError, COMPILED),
    compile_as_wrapper: (ValueError, COMPILED),
    cache_blocks: (ValueError, "keeps state between calls of fixed rows; remove it"),
    replace_forward: (ValueError, "was replaced by .*patched_forward; undo that first"),
    hook_the_whole: (ValueError, "the transformer has forward hooks, which an engine does not call"),
    hook_the_whole_before: (ValueError, "the transformer has forward hooks, which an engine does not call"),
    other_network: (TypeError, "SD3Transformer2DModel is needed, got AutoencoderKL"),
    no_network: (TypeError, "SD3Transformer2DModel is needed, got NoneType"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_refused_when_built_and_whenever_a_run_begins(change):
    error, message = REFUSED[change]
    pipe = tiny_pipeline(seed=21)
    engine = Engine.from_pipe(pipe)
    before, encoded = generate(engine).latents, engine.encode("leaf")
    undo = change(pipe)
    assert engine.explain().startswith("path: none, because ")
    calls = (
        lambda: generate(engine),
        lambda: engine.sample(encoded, steps=2),
        lambda: engine.encode("leaf"),
        lambda: engine.denoiser(None, encoded),
        lambda: Engine.from_pipe(pipe),
    )
    with counted_rows() as rows:
        for call in calls:
            with pytest.raises(error, match=message) as caught:
                call()
            assert "\n" not in str(caught.value)
    assert not rows
    undo()
    assert relative_error(generate(engine).latents, before) < ATTACHED_RUN


def test_device_and_dtype_belong_to_the_pipeline():
    from segue.engine.prompts.engine import PromptEngine

    with pytest.raises(ValueError, match=r"are the pipeline's: move it by pipe\.to"):
        PromptEngine(None, tiny_pipeline(seed=21), dtype=torch.float64)


def test_shapes_and_seeds_that_do_not_fit_the_prompts():
    engine = Engine.from_pipe(tiny_pipeline(seed=21))
    encoded, x = engine.encode("leaf"), torch.zeros(2, 4, 8, 8)
    plan = engine.plan(steps=2, text_tokens=encoded.positive.context.shape[1])
    denoiser = engine.denoiser(None, encoded)
    for wrong in (x, x[:1, :1], x[:1, ..., :1]):
        with pytest.raises(ValueError, match=r"x must have shape \(1, 4, 8, 8\), got"):
            denoiser(wrong, torch.full((len(wrong),), 0.5))
    with pytest.raises(ValueError, match="2 seeds do not fit 1 samples"):
        engine.load(plan, encoded, [1, 2], x[:1])
    with pytest.raises(ValueError, match=r"noise must have shape \(1, 4, 8, 8\)"):
        engine.load(plan, encoded, [1], x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embeddings": None}, TypeError, "multiple values for argument 'embeddings'"),
        ({"prompts": "leaf"}, TypeError, "'prompts'"),
        ({"noise": [1, 2]}, TypeError, r"noise must be a tensor of shape \(1, 4, 8, 8\), got a list"),
        ({"noise": torch.zeros(2, 4, 8, 8)}, ValueError, r"noise must have shape \(1, 4, 8, 8\)"),
        ({"latents": [1, 2]}, TypeError, r"latents must be a tensor \[B, C, H, W\], got a list"),
    ],
)
def test_options_are_refused_before_prompts_are_encoded(monkeypatch, options, error, message):
    engine = Engine.from_pipe(tiny_pipeline(seed=21))
    monkeypatch.setattr(engine, "encode", lambda *_, **__: pytest.fail("prompts were encoded"))
    with pytest.raises(error, match=message):
        engine.generate("leaf", steps=2, **options)


def test_graphs_need_cuda():
    with pytest.raises(ValueError, match="graphs=True needs a CUDA device"):
        Engine.from_pipe(tiny_pipeline(seed=21), graphs=True)
