"""The pipeline around an attached transformer stays itself: callbacks, interruption, image-to-image, inpainting, outputs."""

import numpy as np
import pytest
import torch
from attached_runs import PATHS, draw, draw_attached, relative_error
from counted_rows import planned_rows
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import CFG, SkipLayer, Window
from tests.tolerances import ATTACHED_RUN

CALL = {"prompt": ["leaf", "bee"], "guidance_scale": 4.5, "negative_prompt": "dull"}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(seed=5)


@pytest.fixture
def attachment(pipe):
    yield segue.attach(pipe, CFG(4.5))
    segue.detach(pipe)


def picture(size=16):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(1, 3, size, size, generator=generator)


class Recorder:
    """A step-end callback that remembers what it saw and may change something."""

    def __init__(self, change=None):
        self.change, self.steps, self.latents = change, [], []

    def __call__(self, pipe, step, timestep, tensors):
        self.steps.append((step, float(timestep)))
        self.latents.append(tensors["latents"].clone())
        return tensors if self.change is None else self.change(pipe, step, tensors)


def compare_with_callback(pipe, change, **call):
    """The same callback, plain and attached; returns both recorders."""
    seen = []
    for drawn in (draw, lambda pipe, **call: draw_attached(pipe, CFG(4.5), **call).latents):
        recorder = Recorder(change)
        seen.append((recorder, drawn(pipe, callback_on_step_end=recorder, **(CALL | call))))
    (plain, wanted), (attached, found) = seen
    assert attached.steps == plain.steps
    for mine, theirs in zip((*attached.latents, found), (*plain.latents, wanted), strict=True):
        assert relative_error(mine, theirs) < ATTACHED_RUN
    return attached


def test_callbacks_see_every_step_and_may_change_the_latents(pipe):
    def halve(pipe, step, tensors):
        return {"latents": tensors["latents"] / 2} if step == 2 else {}

    assert len(compare_with_callback(pipe, halve).steps) == 5


def test_interrupt_stops_the_run_and_leaves_the_pipeline_usable(pipe):
    def stop(pipe, step, tensors):
        pipe._interrupt = step == 1
        return {}

    assert len(compare_with_callback(pipe, stop).steps) == 2
    assert len(compare_with_callback(pipe, None).steps) == 5


@pytest.mark.parametrize("in_place", [False, True])
def test_callbacks_may_change_the_prompts(pipe, in_place):
    def swap(pipe, step, tensors):
        if step != 1:
            return {}
        embeds = tensors["prompt_embeds"]
        if in_place:
            embeds.copy_(embeds.roll(1, 2))
            return {}
        return {"prompt_embeds": embeds.roll(1, 2)}

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    changed = compare_with_callback(pipe, swap, callback_on_step_end_tensor_inputs=names)
    assert relative_error(changed.latents[-1], draw(pipe, **CALL)) > 0.01


def test_an_error_in_a_callback_leaves_the_pipeline_usable(pipe, attachment):
    def fail(pipe, step, tensors):
        raise RuntimeError("stop here")

    before = draw(pipe, **CALL)
    with pytest.raises(RuntimeError, match="stop here"):
        draw(pipe, callback_on_step_end=Recorder(fail), **CALL)
    assert torch.equal(draw(pipe, **CALL), before)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("heun", [False, True], ids=["euler", "heun"])
def test_image_to_image(strength, heun, path):
    from diffusers import FlowMatchHeunDiscreteScheduler

    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0) if heun else None
    pipe = tiny_pipeline(seed=6, scheduler=scheduler, pipeline="Img2Img")
    call = {**CALL, "image": picture(), "strength": strength, "height": 16, "width": 16, "num_inference_steps": 8}
    wanted = draw(pipe, **call)
    run = draw_attached(pipe, CFG(4.5), path, **call)
    assert relative_error(run.latents, wanted) < ATTACHED_RUN
    kept = {0.3: 3, 0.75: 6, 1.0: 8}[strength]  # 8 - floor(8 (1 - strength)) steps
    assert run.plan.calls == (2 * kept - 1 if heun else kept)
    assert run.rows == planned_rows(run.plan, 2)


def test_windows_of_an_image_to_image_run_count_the_steps_it_makes():
    pipe = tiny_pipeline(seed=6, pipeline="Img2Img")
    call = {**CALL, "image": picture(), "strength": 0.5, "height": 16, "width": 16, "num_inference_steps": 8}
    run = draw_attached(pipe, CFG(4.5, window=Window.steps(1, 2)) + SkipLayer(3.0, (2,), window=Window.steps(3, 4)), **call)
    assert run.plan.live == ((0, 1), (0, 1), (0, 2), (0, 2))
    assert not run.plan.warnings


def test_inpainting():
    pipe = tiny_pipeline(seed=7, pipeline="Inpaint", in_channels=16, out_channels=16)  # diffusers insists on 16
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :9] = 1
    call = {**CALL, "image": picture(), "mask_image": mask, "strength": 0.8, "height": 16, "width": 16}
    wanted = draw(pipe, **call)
    run = draw_attached(pipe, CFG(4.5), **call)
    assert relative_error(run.latents, wanted) < ATTACHED_RUN
    assert run.rows == planned_rows(run.plan, 2)


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_output_types(pipe, attachment, kind):
    segue.detach(pipe)
    wanted = draw(pipe, output_type=kind, **CALL)
    segue.attach(pipe, CFG(4.5))
    found = draw(pipe, output_type=kind, **CALL)
    assert type(found) is type(wanted)
    if kind == "pil":
        assert [image.size for image in found] == [image.size for image in wanted] == [(16, 16)] * 2
    difference = np.abs(np.stack([np.asarray(image, dtype=np.float64) for image in found]) - np.stack(wanted))
    assert difference.max() <= (1 if kind == "pil" else 1e-4)  # rounding to 8 bits may fall on the other side


def test_return_dict_and_the_model_dtype():
    pipe = tiny_pipeline(seed=8).to(torch.bfloat16)
    segue.attach(pipe, CFG(4.5))
    images = pipe(**CALL, max_sequence_length=T5_TOKENS, num_inference_steps=2, return_dict=False, output_type="pt")[0]
    assert images.dtype == torch.bfloat16
    assert torch.isfinite(images).all()


def test_a_call_of_the_transformer_returns_what_it_is_asked_for(pipe, attachment):
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    seen = []

    def keep(module, inputs, output):
        seen.append(output)

    handle = pipe.transformer.register_forward_hook(keep)
    try:
        draw(pipe, **CALL)
    finally:
        handle.remove()
    first, second = seen[0][0].chunk(2)
    assert isinstance(seen[0], tuple) and torch.equal(first, second)
    pipe.scheduler.set_timesteps(2)
    text = {"encoder_hidden_states": torch.zeros(4, 5, 24), "pooled_projections": torch.zeros(4, 20)}
    output = pipe.transformer(torch.zeros(4, 4, 8, 8), timestep=pipe.scheduler.timesteps[0].expand(4), **text)
    assert isinstance(output, Transformer2DModelOutput) and output.sample.shape == (4, 4, 8, 8)
