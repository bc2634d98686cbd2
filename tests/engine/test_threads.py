"""Threads on one pipeline: runs of an engine beside each other, beside questions about it, and beside the pipeline itself."""

import threading
from collections.abc import Callable

import pytest
import torch
from attached_runs import draw
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline, tiny_transformer

import segue
from segue import CFG, Engine, SegmentedGuidance, SkipLayer

RULE = CFG(3.0) + SkipLayer(1.5, (1,))
SMALL = {"num_layers": 2, "dual_attention_layers": (0,)}
WORKERS, RUNS, BESIDE, SEED = 4, 50, 12, 5


def together(*tasks: Callable[[], None]) -> None:
    """Run every task in a thread of its own, and raise what the first of them to fail raised."""
    errors = []

    def guarded(task):
        try:
            task()
        except BaseException as error:  # what a thread raises is this test's to raise
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def check_side_by_side(run: Callable[[], torch.Tensor], *others: Callable[[], torch.Tensor | str], runs: int = RUNS) -> None:
    """``runs`` runs in each of WORKERS threads, others in one thread each: all are equal to those made alone."""
    found: list[tuple[Callable, torch.Tensor | str]] = []
    alone = {action: action() for action in (run, *others)}

    def repeat(action, times):
        for _ in range(times):
            found.append((action, action()))

    together(*[lambda: repeat(run, runs)] * WORKERS, *(lambda one=one: repeat(one, BESIDE) for one in others))
    assert len(found) == WORKERS * runs + BESIDE * len(others)
    for action, result in [*found, (run, run())]:
        assert torch.equal(result, alone[action]) if isinstance(result, torch.Tensor) else result == alone[action]


def lora_pipeline():
    pytest.importorskip("peft")
    from peft import LoraConfig

    pipe = tiny_pipeline(seed=21, **SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        targets = ["to_q", "norm1.linear", "linear_1", "context_embedder"]
        pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False), "style")
    return pipe


def offloaded_pipeline():
    """Through a hook on the transformer as a whole, as model offloading puts there."""
    hooks = pytest.importorskip("accelerate.hooks")
    pipe = tiny_pipeline(seed=21, **SMALL)
    hooks.add_hook_to_module(pipe.transformer, hooks.ModelHook())
    return pipe


def packed_pipeline():
    return tiny_pipeline(seed=21, **SMALL)


@pytest.mark.parametrize(
    ("make", "runs"),
    [
        (lora_pipeline, 5),
        pytest.param(lora_pipeline, RUNS, marks=pytest.mark.slow),
        (offloaded_pipeline, 5),
        (packed_pipeline, 5),
    ],
)
def test_runs_side_by_side_equal_those_drawn_alone(make, runs):
    pipe = make()
    forward = vars(pipe.transformer).get("forward")
    engine = Engine.from_pipe(pipe)
    embeddings = engine.encode(["leaf"], "dull", max_sequence_length=T5_TOKENS)
    text = {"prompt_embeds": embeddings.positive.context, "pooled_prompt_embeds": embeddings.positive.pooled}
    check_side_by_side(
        lambda: engine.sample(embeddings, RULE, steps=1, seeds=SEED).latents,
        lambda: engine.explain().splitlines()[0],
        lambda: draw(pipe, prompt=None, guidance_scale=1.0, num_inference_steps=1, **text),
        runs=runs,
    )
    assert vars(pipe.transformer).get("forward") is forward


def test_prompts_are_encoded_side_by_side():
    """Tokenizers hold the state of a call, so an engine has copies; what is added to the pipeline's takes effect."""
    pipe = tiny_pipeline(seed=21, **SMALL)
    engine = Engine.from_pipe(pipe)

    def encoded():
        embeddings = engine.encode(["leaf"], "dull oak", max_sequence_length=T5_TOKENS)
        return torch.cat([embeddings.positive.context, embeddings.negative.context])

    def plain():
        options = {"prompt_2": None, "prompt_3": None, "max_sequence_length": T5_TOKENS}
        return torch.cat(pipe.encode_prompt("leaf", negative_prompt="dull oak", **options)[:2])

    check_side_by_side(encoded, plain, runs=10)
    before = encoded()
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        tokenizer.add_tokens("leaf")
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert torch.equal(encoded(), plain()) and not torch.equal(encoded(), before)


def test_looking_at_an_attachment_changes_nothing_meanwhile():
    """Before its first run, when it looks at the transformer anew each time."""
    pipe = tiny_pipeline(seed=21)
    attachment = segue.attach(pipe, RULE)
    before, seen, done = pipe.transformer.forward, [], threading.Event()

    def look():
        for _ in range(10):
            assert "packed weights" in attachment.explain()
        done.set()

    def watch():
        while not done.is_set():
            seen.append(pipe.transformer.forward)

    together(look, watch)
    assert len(seen) > 10 and all(forward is before for forward in seen)


def test_an_engine_of_a_class_label_model_explains_itself_while_it_runs():
    engine = Engine(tiny_sit(depth=2, exits=()), device="cpu")
    check_side_by_side(
        lambda: engine.sample([0, 4], RULE, steps=1, seeds=SEED).latents,
        lambda: engine.explain().splitlines()[0],
        lambda: engine.sample([1], RULE, steps=2, seeds=SEED).latents,
        runs=10,
    )


def guider_and_call():
    """A guider that skips a layer, at the beginning of a step, and the inputs of a call."""
    guider = SegmentedGuidance(SkipLayer(2.0, (1,)))
    guider.set_state(0, 1, torch.tensor(500.0))
    generator = torch.Generator().manual_seed(0)
    return guider, {
        "hidden_states": torch.randn(1, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(1, 7, 24, generator=generator),
        "pooled_projections": torch.randn(1, 20, generator=generator),
        "timestep": torch.tensor([500.0]),
        "return_dict": False,
    }


def ask_to_skip(guider, transformer):
    """Go on to the weak branch, up to its call."""
    for _ in range(2):
        guider.prepare_models(transformer)


def test_a_guider_skips_layers_in_its_own_thread_alone():
    """Between the moment it asks for the next call and that call, another thread calls the same transformer."""
    transformer = tiny_transformer(num_layers=3, dual_attention_layers=(0,))
    guider, call = guider_and_call()
    full, skipping = transformer(**call)[0], transformer(**call, skip_layers=[1])[0]
    elsewhere = []
    for wanted in (full, skipping):  # the conditional branch, then the weak one
        guider.prepare_models(transformer)
        thread = threading.Thread(target=lambda: elsewhere.append(transformer(**call)[0]))
        thread.start()
        thread.join()
        assert torch.equal(transformer(**call)[0], wanted)
        guider.cleanup_models(transformer)
    assert all(torch.equal(found, full) for found in elsewhere) and len(elsewhere) == 2


def test_a_guider_lets_go_in_the_middle_of_a_call_of_another_thread():
    """PyTorch has listed the hooks of that call, and asks of each whether it takes keywords when its turn comes."""
    transformer = tiny_transformer(num_layers=3, dual_attention_layers=(0,))
    guider, call = guider_and_call()
    full, found = transformer(**call)[0], []
    ask_to_skip(guider, transformer)
    transformer.register_forward_pre_hook(lambda *_: guider.cleanup_models(transformer), prepend=True)
    together(lambda: found.append(transformer(**call)[0]))
    assert torch.equal(found[0], full)


def test_an_engine_runs_while_a_guider_waits_for_its_call():
    pipe = packed_pipeline()
    engine = Engine.from_pipe(pipe)
    embeddings = engine.encode(["leaf"], "dull", max_sequence_length=T5_TOKENS)

    def drawn():
        return engine.sample(embeddings, RULE, steps=1, seeds=SEED).latents

    alone, path, network = drawn(), engine.explain().splitlines()[0], engine.models["main"]
    guider, _ = guider_and_call()
    ask_to_skip(guider, pipe.transformer)
    assert torch.equal(drawn(), alone)
    assert engine.explain().splitlines()[0] == path and engine.models["main"] is network
