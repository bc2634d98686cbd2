"""Pictures in and out of the prompt engine, against ``StableDiffusion3Img2ImgPipeline`` and the pipeline's own VAE."""

import numpy as np
import pytest
import torch
from attached_runs import relative_error
from counted_rows import counted_rows, planned_rows
from PIL import Image
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import CFG, Engine
from tests.tolerances import ATTACHED_RUN

PROMPTS, STEPS, SIZE = ["leaf", "bee"], 5, {"height": 16, "width": 16}
NAMES = {"static": "Euler", "dynamic": "Euler", "heun": "Heun"}


def scheduler(name):
    import diffusers

    settings = {"use_dynamic_shifting": True} if name == "dynamic" else {"shift": 3.0}
    return getattr(diffusers, f"FlowMatch{NAMES[name]}DiscreteScheduler")(**settings)


def pictures(*sizes):
    """Random RGB pictures of these (width, height)."""
    generator = np.random.default_rng(4)
    return [Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def upstream(pipe, images, seeds, strength, **call):
    """Latents and pictures of diffusers' image-to-image, with a generator per sample."""
    from diffusers import StableDiffusion3Img2ImgPipeline

    other = StableDiffusion3Img2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "max_sequence_length": T5_TOKENS, "strength": strength}
    drawn = []
    for kind in ("latent", "pil"):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn.append(other(image=images, generator=generators, output_type=kind, **SIZE, **common, **call).images)
    return drawn


def generate(engine, prompts, seeds, **options):
    return engine.generate(
        prompts, guidance=CFG(3.0), steps=STEPS, seeds=seeds, max_sequence_length=T5_TOKENS, **SIZE, **options
    )


def difference(images, others):
    """The largest difference of two lists of pictures, in 8-bit levels."""
    pairs = zip(images, others, strict=True)
    return max(int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max()) for a, b in pairs)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_whole_runs_equal_the_pipeline(name, strength):
    """From picture to picture, one per prompt: posterior, noise, noising, truncated schedule, velocity, decoding."""
    pipe = tiny_pipeline(scheduler=scheduler(name))
    images = pictures((24, 18), (16, 16))
    latents, expected = upstream(pipe, images, [3, 4], strength, prompt=PROMPTS)
    engine = Engine.from_pipe(pipe)
    with counted_rows() as rows:
        run = generate(engine, PROMPTS, [3, 4], image=images, strength=strength)
    assert relative_error(run.latents, latents) < ATTACHED_RUN
    assert difference(run.images, expected) <= 1  # a rounding may fall to the other side
    kept = {0.3: 2, 0.6: 3, 1.0: 5}[strength]  # 5 - floor(5 (1 - strength)) steps
    assert run.calls == run.plan.calls == (2 * kept - 1 if name == "heun" else kept)
    assert rows == planned_rows(run.plan, 2)


@pytest.mark.parametrize("kind", ["pil", "array", "tensor"])
def test_one_picture_for_one_prompt(kind):
    pipe, (image,) = tiny_pipeline(), pictures((16, 16))
    array = np.asarray(image, np.float32)[None] / 255
    image = {"pil": image, "array": array, "tensor": torch.from_numpy(array).permute(0, 3, 1, 2)}[kind]
    latents, _ = upstream(pipe, image, [9], 0.6, prompt="leaf")
    assert relative_error(generate(Engine.from_pipe(pipe), "leaf", [9], image=image).latents, latents) < ATTACHED_RUN


def test_one_picture_for_several_samples_is_drawn_from_by_every_seed():
    """diffusers does so if the picture is repeated; from a single one it would give the first seed's latent to all."""
    pipe, (image,) = tiny_pipeline(), pictures((16, 16))
    latents, _ = upstream(pipe, [image, image], [3, 4], 0.6, prompt=PROMPTS)
    engine = Engine.from_pipe(pipe)
    run = generate(engine, PROMPTS, [3, 4], image=image, strength=0.6)
    assert relative_error(run.latents, latents) < ATTACHED_RUN
    alone = generate(engine, PROMPTS[1], [4], image=image, strength=0.6)
    assert relative_error(alone.latents, run.latents[1:]) < ATTACHED_RUN


def test_pictures_belong_to_prompts_whatever_the_number_of_images():
    engine, images = Engine.from_pipe(tiny_pipeline()), pictures((16, 16), (12, 20))
    run = generate(engine, PROMPTS, [1, 2, 3, 4], image=images, num_images=2)
    for index, seed in enumerate((1, 2, 3, 4)):
        alone = generate(engine, PROMPTS[index // 2], [seed], image=images[index // 2])
        assert relative_error(alone.latents, run.latents[index : index + 1]) < ATTACHED_RUN


def test_own_noise_stays_beside_a_picture():
    engine, (image,) = Engine.from_pipe(tiny_pipeline()), pictures((16, 16))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    at_full = [generate(engine, "leaf", [seed], image=image, strength=1.0, noise=noise).latents for seed in (1, 2)]
    assert torch.equal(*at_full)  # the first level is pure noise, and that is given
    partly = [generate(engine, "leaf", [seed], image=image, strength=0.4, noise=noise).latents for seed in (1, 2)]
    assert relative_error(*partly) > ATTACHED_RUN  # the seed still draws from the posterior


def test_latents_to_start_from_take_their_own_size():
    engine = Engine.from_pipe(tiny_pipeline())
    clean = torch.randn(1, 4, 6, 10, generator=torch.Generator().manual_seed(5))
    options = {"steps": STEPS, "seeds": [3], "latents": clean, "strength": 0.6}
    expected = engine.sample(engine.encode("leaf", max_sequence_length=T5_TOKENS), CFG(3.0), **options)
    run = engine.generate("leaf", guidance=CFG(3.0), max_sequence_length=T5_TOKENS, **options)
    assert torch.equal(run.latents, expected.latents)
    assert run.images[0].size == (20, 12)


@torch.no_grad()
def decoded(pipe, latents):
    """Pictures by the pipeline's VAE, as the pipeline decodes them."""
    scaled = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(scaled, return_dict=False)[0], output_type="pil")


def noted_batches(vae, monkeypatch, name="decode"):
    """The batch sizes of the calls of a method of the VAE."""
    method, batches = getattr(vae, name), []

    def noted(latents, *rest, **options):
        batches.append(len(latents))
        return method(latents, *rest, **options)

    monkeypatch.setattr(vae, name, noted)
    return batches


def test_decode_is_the_pipelines_in_batches(monkeypatch):
    engine = Engine.from_pipe(tiny_pipeline())
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = decoded(engine.pipe, latents)
    batches = noted_batches(engine.pipe.vae, monkeypatch)
    assert difference(engine.decode(latents), expected) <= 1 and batches == [5]
    assert difference(engine.decode(latents, max_batch=2), expected) <= 1 and batches == [5, 2, 2, 1]


def test_a_run_in_batches_is_decoded_in_batches(monkeypatch):
    engine = Engine.from_pipe(tiny_pipeline())
    whole = generate(engine, [*PROMPTS, "owl"], [1, 2, 3])
    batches = noted_batches(engine.pipe.vae, monkeypatch)
    with counted_rows() as rows:
        parts = generate(engine, [*PROMPTS, "owl"], [1, 2, 3], max_batch=2)
    assert batches == [2, 1] and rows == planned_rows(parts.plan, 2) + planned_rows(parts.plan, 1)
    assert relative_error(parts.latents, whole.latents) < ATTACHED_RUN
    assert difference(parts.images, whole.images) <= 1


def test_tiling_decodes_tile_by_tile(monkeypatch):
    pipe = tiny_pipeline()
    engine = Engine.from_pipe(pipe)
    latents = torch.randn(1, 4, 20, 12, generator=torch.Generator().manual_seed(1))
    whole = decoded(pipe, latents)
    tiled = noted_batches(pipe.vae, monkeypatch, "tiled_decode")
    engine.use_vae_tiling()
    images = engine.decode(latents)
    assert tiled == [1] and difference(images, decoded(pipe, latents)) == 0
    assert images[0].size == whole[0].size and difference(images, whole) > 1  # tiles blend, and know less of each other
    engine.use_vae_tiling(False)
    assert difference(engine.decode(latents), whole) == 0 and tiled == [1, 1]
