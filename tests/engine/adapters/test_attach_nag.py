"""NAG attached to a live pipeline: against diffusers' own loop with the published attention processor."""

import pytest
import torch
from attached_runs import draw, relative_error
from nag_processor import nag_processors
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import CFG, NAG, Engine, SkipLayer, Window
from tests.tolerances import ATTACHED_RUN

PROMPTS, NEGATIVES = ["leaf", "bee"], ["dull", "wet"]
STEPS = 3


def published(pipe, scale: float, alpha: float, negative, skipped=None, **call) -> torch.Tensor:
    """The pipeline's own loop at guidance_scale 1 over a transformer whose batch is doubled by a hook, with NAG inside."""
    with torch.no_grad():
        _, context, _, pooled = pipe.encode_prompt(
            prompt=PROMPTS, prompt_2=None, prompt_3=None, negative_prompt=negative, max_sequence_length=T5_TOKENS
        )
    images = call.get("num_images_per_prompt", 1)
    context, pooled = (tensor.repeat_interleave(images, dim=0) for tensor in (context, pooled))

    def doubled(module, args, kwargs):
        both = {name: torch.cat([kwargs[name]] * 2) for name in ("hidden_states", "timestep")}
        texts = {"encoder_hidden_states": context, "pooled_projections": pooled}
        return args, kwargs | both | {name: torch.cat([kwargs[name], negative]) for name, negative in texts.items()}

    def first_half(module, args, kwargs, output):
        return (output[0].chunk(2)[0],)

    handles = [
        pipe.transformer.register_forward_pre_hook(doubled, with_kwargs=True),
        pipe.transformer.register_forward_hook(first_half, with_kwargs=True),
    ]
    try:
        with nag_processors(pipe.transformer, scale, 2.5, alpha):
            return draw(pipe, prompt=PROMPTS, num_inference_steps=STEPS, guidance_scale=1.0, **call)
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(params=["sd3", "sd3.5-medium"])
def pipe(request):
    return tiny_pipeline(
        request.param, seed=5, num_layers=3, **({"dual_attention_layers": (0, 2)} if "." in request.param else {})
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_a_run_is_the_published_one(pipe, guidance_scale):
    """The negative prompt acts whether the pipeline encodes it or not, for several pictures of a prompt."""
    call = {"num_images_per_prompt": 2}
    wanted = published(pipe, 5.0, 0.25, NEGATIVES, **call)
    plain = draw(pipe, prompt=PROMPTS, num_inference_steps=STEPS, guidance_scale=1.0, **call)
    attachment = segue.attach(pipe, NAG(5.0, alpha=0.25))
    given = {"prompt": PROMPTS, "negative_prompt": NEGATIVES, "num_inference_steps": STEPS, "guidance_scale": guidance_scale}
    found = draw(pipe, **given, **call)
    assert relative_error(found, wanted) < ATTACHED_RUN < relative_error(plain, wanted)
    assert attachment.plan.cost.evaluations == STEPS and attachment.plan.cost.text_blocks == 3 * STEPS
    segue.detach(pipe)
    assert torch.equal(draw(pipe, prompt=PROMPTS, num_inference_steps=STEPS, guidance_scale=1.0, **call), plain)


def test_the_empty_prompt_where_none_is_given(pipe):
    wanted = published(pipe, 3.0, 0.125, ["", ""])
    segue.attach(pipe, "nag:scale=3")
    assert relative_error(draw(pipe, prompt=PROMPTS, num_inference_steps=STEPS, guidance_scale=1.0), wanted) < ATTACHED_RUN


def test_attached_and_generated_are_the_same():
    pipe = tiny_pipeline(seed=6, num_layers=3, dual_attention_layers=(0,))
    rule = NAG([5.0, 3.0], alpha=0.25, window=Window.fraction(0, 0.7)) + CFG(2.0) + SkipLayer(1.0, (1,))
    run = Engine.from_pipe(pipe).generate(
        PROMPTS, NEGATIVES, rule, steps=STEPS, seeds=[1, 2], max_sequence_length=T5_TOKENS, output="latent"
    )
    segue.attach(pipe, rule)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    call = {"prompt": PROMPTS, "negative_prompt": NEGATIVES, "num_inference_steps": STEPS, "guidance_scale": 2.0}
    found = draw(pipe, generator=lambda: generators, **call)
    assert relative_error(found, run.latents) < ATTACHED_RUN


def test_refusals():
    pipe = tiny_pipeline(seed=7, num_layers=2, dual_attention_layers=())
    call = {"num_inference_steps": 2, "guidance_scale": 1.0}
    segue.attach(pipe, NAG(5.0) + CFG(2.0))
    with pytest.raises(ValueError, match="evaluates the uncond branch at call 1 of 2, and the pipeline gives only the prompt"):
        draw(pipe, **call)
    segue.attach(pipe, NAG(5.0))
    inputs = {"hidden_states": torch.zeros(1, 4, 8, 8), "timestep": torch.tensor([1000.0])}
    texts = {"encoder_hidden_states": torch.zeros(1, 13, 24), "pooled_projections": torch.zeros(1, 20)}
    with pytest.raises(
        ValueError, match="takes the negative prompt from the call of the attached pipeline, and none is running"
    ):
        pipe.scheduler.set_timesteps(2)
        pipe.transformer(**inputs, **texts)
    pipe.transformer.transformer_blocks[0].ff.net[2].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="through its own modules has no NAG, which acts inside its attention"):
        draw(pipe, **call)
