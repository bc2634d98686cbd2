"""What cannot be guided is refused in one sentence, before the network runs, and the pipeline stays usable."""

import re

import pytest
import torch
from attached_runs import draw, draw_attached, forced, relative_error
from counted_rows import counted_rows
from tiny_models import tiny_sit
from tiny_sd3 import tiny_pipeline, tiny_transformer

import segue
from segue import CFG, AutoGuidance, Engine, PerturbedLayers, SkipLayer, Window
from tests.tolerances import ATTACHED_RUN


@pytest.fixture
def pipe():
    return tiny_pipeline(seed=13)


def refused(error, message, function, *arguments, **keywords):
    """The call raises one sentence, and no transformer block runs."""
    with counted_rows() as rows, pytest.raises(error, match=message) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    assert not rows


@pytest.mark.parametrize(
    ("error", "message", "rule"),
    [
        (TypeError, "guidance must be a rule such as CFG\\(4.5\\), or its text such as .cfg:scale=4.5., got 4.5", 4.5),
        (ValueError, "unknown guidance rule .cgf.; known: none, cfg", "cgf"),
        (ValueError, "layer 6 does not exist: .* has layers 0 to 5", SkipLayer(2.0, (5, 6))),
        (ValueError, "no network named 'weak'", AutoGuidance(1.5)),
        (ValueError, "'parent' needs superclasses", CFG(3.0, condition="parent")),
        (ValueError, "channels 5 is out of range", CFG(3.0, channels=5)),
    ],
)
def test_rules(pipe, error, message, rule):
    refused(error, message, segue.attach, pipe, rule)
    assert "forward" not in vars(pipe.transformer)


def test_graphs(pipe):
    refused(ValueError, "graphs=True needs a CUDA device, and the network is on cpu", segue.attach, pipe, None, graphs=True)
    refused(TypeError, "graphs must be True, False or None, got 'yes'", segue.attach, pipe, None, graphs="yes")
    assert "forward" not in vars(pipe.transformer)


def test_pipelines_of_other_kinds(pipe):
    for given in (object(), Engine(tiny_sit(), device="cpu"), "sd3-medium"):
        message = f"a diffusers pipeline of Stable Diffusion 3 or DiT is needed, got an object of {type(given).__name__}"
        refused(TypeError, message, segue.attach, given, CFG(3.0))
        refused(TypeError, message, Engine.from_pipe, given)
    pipe.transformer = pipe.vae
    refused(TypeError, "SD3Transformer2DModel is needed, got AutoencoderKL", segue.attach, pipe, CFG(3.0))


def test_transformers_of_unknown_shape(pipe):
    pipe.transformer = tiny_transformer(in_channels=9)
    refused(ValueError, "takes 9 channels and gives 4: it is an inpainting one", segue.attach, pipe, CFG(3.0))


def test_detaching_what_is_not_attached(pipe):
    refused(ValueError, "nothing is attached to this StableDiffusion3Pipeline", segue.detach, pipe)
    segue.attach(pipe, CFG(3.0))
    segue.detach(pipe)
    refused(ValueError, "nothing is attached", segue.detach, pipe)


def test_one_transformer_in_two_pipelines(pipe):
    from diffusers import StableDiffusion3Img2ImgPipeline

    components = {name: part for name, part in pipe.components.items() if part is not None}
    other = StableDiffusion3Img2ImgPipeline(**components)
    segue.attach(pipe, CFG(3.0))
    refused(ValueError, "nothing is attached to this StableDiffusion3Img2ImgPipeline", segue.detach, other)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_another_pipeline_that_runs_on_the_transformer_and_the_scheduler(pipe, scale):
    from diffusers import StableDiffusion3Img2ImgPipeline

    other = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    call = {"image": torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)), "guidance_scale": scale}
    plain = draw(other, **call)
    segue.attach(pipe, SkipLayer(2.0, (2, 3)))
    guided = draw(pipe, guidance_scale=scale)
    message = "attached to another pipeline than the one that runs, a StableDiffusion3Img2ImgPipeline"
    refused(ValueError, message, draw, other, **call)
    assert torch.equal(draw(pipe, guidance_scale=scale), guided)

    def run_the_other(pipe, step, timestep, tensors):
        with pytest.raises(ValueError, match=message):
            draw(other, **call)
        return tensors

    with pytest.raises(ValueError, match=r"the one that runs|already made all|called at timestep"):
        draw(pipe, guidance_scale=scale, callback_on_step_end=run_the_other)  # the scheduler was the other's meanwhile
    segue.detach(pipe)
    assert torch.equal(draw(other, **call), plain)


def test_another_pipeline_that_holds_the_replaced_transformer(pipe):
    from diffusers import StableDiffusion3Pipeline

    other = StableDiffusion3Pipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    old, plain = pipe.transformer, draw(pipe, guidance_scale=1.0)
    segue.attach(pipe, SkipLayer(2.0, (2,)))
    pipe.transformer = tiny_transformer(seed=99)
    new_plain = draw(pipe, guidance_scale=1.0)
    message = "a transformer that its pipeline no longer holds; call segue.attach .* or segue.detach"
    refused(ValueError, message, draw, other, guidance_scale=1.0)
    segue.attach(pipe, None)
    assert "forward" not in vars(old) and torch.equal(draw(other, guidance_scale=1.0), plain)
    assert relative_error(draw(pipe, guidance_scale=1.0), new_plain) < ATTACHED_RUN
    pipe.transformer = old
    segue.detach(pipe)
    refused(ValueError, "nothing is attached", segue.detach, pipe)
    assert torch.equal(draw(pipe, guidance_scale=1.0), plain)


def test_a_forward_replaced_by_someone_else(pipe):
    def patched_forward(*arguments, **keywords):
        raise AssertionError

    pipe.transformer.forward = patched_forward
    refused(ValueError, "was replaced by .*patched_forward; undo that", segue.attach, pipe, CFG(3.0))


def test_the_unconditional_branch_without_a_negative_prompt(pipe):
    segue.attach(pipe, CFG(3.0))
    message = "uncond branch at call 1 of 5, .* pass guidance_scale > 1 to the pipeline"
    refused(ValueError, message, draw, pipe, guidance_scale=1.0)
    draw(pipe, guidance_scale=2.0)
    segue.attach(pipe, SkipLayer(2.0, (2,)))
    draw(pipe, guidance_scale=1.0)  # this rule needs none


def test_the_pipelines_own_skip_layers(pipe):
    segue.attach(pipe, CFG(3.0))
    with pytest.raises(ValueError, match=r"skip_guidance_layers=\[2\] cannot join an attached rule; give SkipLayer"):
        draw(pipe, guidance_scale=2.0, skip_guidance_layers=[2], skip_layer_guidance_stop=0.9)
    draw(pipe, guidance_scale=2.0)


def test_the_pipelines_own_perturbed_attention(pipe):
    from diffusers import StableDiffusion3PAGPipeline

    components = {name: part for name, part in pipe.components.items() if part is not None}
    other = StableDiffusion3PAGPipeline(**components, pag_applied_layers=["blocks.2"])
    other.set_progress_bar_config(disable=True)
    wanted = draw(other, guidance_scale=4.5, pag_scale=0.0)
    segue.attach(other, CFG(4.5))
    assert relative_error(draw(other, guidance_scale=4.5, pag_scale=0.0), wanted) < ATTACHED_RUN
    message = r"own perturbed attention \(pag_scale=2\) .* give PerturbedLayers\(2, layers, kind='attention_identity_image'\)"
    refused(ValueError, message, draw, other, guidance_scale=4.5, pag_scale=2.0)
    assert relative_error(draw(other, guidance_scale=4.5, pag_scale=0.0), wanted) < ATTACHED_RUN
    segue.detach(other)
    assert torch.equal(draw(other, guidance_scale=4.5, pag_scale=0.0), wanted)


def test_attention_processors_that_a_broken_run_of_another_kind_left(pipe):
    from diffusers.models.attention_processor import JointAttnProcessor2_0, PAGCFGJointAttnProcessor2_0

    wanted = draw(pipe, guidance_scale=4.5)
    segue.attach(pipe, CFG(4.5))
    pipe.transformer.transformer_blocks[2].attn.processor = PAGCFGJointAttnProcessor2_0()
    message = "blocks.2.attn.processor is a PAGCFGJointAttnProcessor2_0, which a run of a PAG pipeline that did not end"
    for prompts in ("leaf", ["leaf", "bee", "owl"]):  # three prompts, twice, would go through it as three other parts
        refused(ValueError, message, draw, pipe, prompt=prompts, guidance_scale=4.5)
    segue.detach(pipe)
    refused(ValueError, message, segue.Engine.from_pipe, pipe)
    pipe.transformer.set_attn_processor(JointAttnProcessor2_0())  # as the sentence says
    assert relative_error(draw_attached(pipe, CFG(4.5), guidance_scale=4.5).latents, wanted) < ATTACHED_RUN


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (CFG(3.0), "evaluates the uncond branch after it"),
        (SkipLayer(2.0, (2,)).reused(3), "carries directions across it, which start anew there"),
    ],
)
def test_a_negative_prompt_taken_away_in_the_middle(pipe, rule, why):
    """The pipeline was given guidance_scale > 1: the callback is what the sentence must name."""
    from diffusers.callbacks import SD3CFGCutoffCallback

    cut = SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    call = {"callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": cut.tensor_inputs, "guidance_scale": 4.5}
    segue.attach(pipe, rule)
    with pytest.raises(ValueError, match=f"after call 2 of 5, as SD3CFGCutoffCallback does .*, and the rule {why}"):
        draw(pipe, **call)
    draw(pipe, guidance_scale=4.5)
    segue.attach(pipe, CFG(3.0, window=Window.steps(1, 2)) + SkipLayer(2.0, (2,)))
    alone = draw(pipe, guidance_scale=4.5)
    assert relative_error(draw(pipe, **call), alone) < ATTACHED_RUN


def test_schedulers_that_are_not_flow_matching(pipe):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    segue.attach(pipe, CFG(3.0))
    pipe.scheduler = DDIMScheduler()
    refused(TypeError, "DDIMScheduler has no sigmas; a flow-matching scheduler is needed", draw, pipe)
    pipe.scheduler = EulerDiscreteScheduler()
    refused(ValueError, r"EulerDiscreteScheduler calls the network at time 999 for noise level 1.*flow-matching", draw, pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=500)
    refused(ValueError, "at time 500 for noise level 1; a flow-matching scheduler", draw, pipe)


def test_calls_of_the_transformer_outside_the_run(pipe):
    segue.attach(pipe, None)
    draw(pipe, guidance_scale=1.0)
    text = {"encoder_hidden_states": torch.zeros(2, 5, 24), "pooled_projections": torch.zeros(2, 20)}

    def call(timestep, latents):
        pipe.transformer(latents, timestep=torch.tensor(timestep).expand(2), **text)

    refused(ValueError, "the scheduler has already made all its 5 calls", call, 900.0, torch.zeros(2, 4, 8, 8))
    pipe.scheduler.set_timesteps(4)
    message = "called at timestep 900, and the scheduler is at 1000: another pipeline runs, or a loop that"
    refused(ValueError, message, call, 900.0, torch.zeros(2, 4, 8, 8))
    pipe._guidance_scale = 3.0
    refused(ValueError, "two halves of the batch differ", call, 1000.0, torch.arange(512.0).view(2, 4, 8, 8))


def test_perturbed_attention_without_packed_weights(pipe):
    rule = PerturbedLayers(2.0, (2,), kind="attention_identity", window=Window.steps(2, 2))
    packed = draw_attached(pipe, rule, "packed")
    assert (packed.latents - draw(pipe, guidance_scale=1.0)).abs().max() > 0.01
    with forced(pipe, "modules"):
        segue.attach(pipe, rule)
        refused(ValueError, "runs through its own modules has no attention_identity; only skip", draw, pipe)


def test_transformers_compiled_as_a_whole(pipe):
    whole = re.escape("compile its blocks instead: for block in pipe.transformer.transformer_blocks: block.compile()")
    original = pipe.transformer
    pipe.transformer = torch.compile(original, backend="eager")
    refused(ValueError, whole, segue.attach, pipe, CFG(3.0))
    pipe.transformer = original
    segue.attach(pipe, CFG(3.0))
    original.compile(backend="eager")
    with pytest.raises(ValueError, match=whole):
        draw(pipe, guidance_scale=2.0)


def test_hooks_that_keep_state_between_calls(pipe):
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    segue.attach(pipe, CFG(3.0))
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig())
    refused(ValueError, "keeps state between calls of fixed rows; remove it", draw, pipe, guidance_scale=2.0)


def test_tensors_for_attention_processors(pipe):
    segue.attach(pipe, CFG(3.0))
    message = r"joint_attention_kwargs\['mask'\] is a tensor, whose rows no branch can be given"
    refused(ValueError, message, draw, pipe, guidance_scale=2.0, joint_attention_kwargs={"mask": torch.ones(2)})
