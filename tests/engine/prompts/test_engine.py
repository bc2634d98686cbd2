"""The prompt engine against diffusers' own pipeline, run to the end: fp32 latents of the same prompts and noise."""

import pytest
import torch
from counted_rows import counted_rows
from tiny_sd3 import tiny_pipeline

from segue import CFG, Engine, SkipLayer, Window
from segue.engine.prompts.encoding import PromptEmbeddings
from segue.engine.prompts.engine import PromptEngine
from segue.models.mmdit import TextCondition

# whole runs of up to 9 calls in fp32, two implementations of the same products: a few hundred roundings of 6e-8
RUN_ERROR = 2e-5
PROMPTS = ["a leaf", "two red leaves"]
START, LATENT = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 8, 8)
TEXT = TextCondition(torch.zeros(1, 9, 24), torch.zeros(1, 20))


@pytest.fixture(scope="module", params=["sd3", "sd3.5-medium", "sd3.5-large"])
def kind(request):
    return request.param


def scheduler(name: str):
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

    if name == "heun":
        return FlowMatchHeunDiscreteScheduler(shift=3.0)
    if name == "dynamic":
        return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64)
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def upstream(pipe, seeds, **options) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(generator=generators, output_type="latent", num_inference_steps=5, **options).images


def check(run, expected):
    assert run.latents.shape == expected.shape
    assert (run.latents - expected).abs().max() <= RUN_ERROR * expected.abs().max()


@pytest.mark.parametrize("name", ["static", "dynamic", "heun"])
@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_whole_runs_equal_the_pipeline(kind, name, scale):
    pipe = tiny_pipeline(kind, scheduler=scheduler(name))
    expected = upstream(pipe, [3, 4], prompt=PROMPTS, negative_prompt="blurry", guidance_scale=scale)
    engine = Engine.from_pipe(pipe)
    run = engine.generate(PROMPTS, "blurry", CFG(scale), steps=5, seeds=[3, 4])
    check(run, expected)
    assert run.plan.cost.evaluations == len(run.plan.sigmas) * (1 if scale == 1.0 else 2)


def test_stability_skip_layer_window_equals_the_pipeline(kind):
    """diffusers skips where ``start * n < i < stop * n`` for step i from 0."""
    pipe = tiny_pipeline(kind, scheduler=scheduler("static"))
    options = {"skip_guidance_layers": [1, 3], "skip_layer_guidance_scale": 2.8, "skip_layer_guidance_start": 0.1}
    expected = upstream(pipe, [3], prompt=PROMPTS[0], guidance_scale=4.5, skip_layer_guidance_stop=0.7, **options)
    rule = CFG(4.5) + SkipLayer(2.8, (1, 3), window=Window.steps(2, 4))  # 0.5 < i < 3.5
    check(Engine.from_pipe(pipe).generate(PROMPTS[0], "", rule, steps=5, seeds=[3]), expected)


def test_several_images_per_prompt_are_prompt_major(kind):
    pipe = tiny_pipeline(kind)
    expected = upstream(pipe, [1, 2, 3, 4], prompt=PROMPTS, num_images_per_prompt=2, guidance_scale=3.0)
    run = Engine.from_pipe(pipe).generate(PROMPTS, "", CFG(3.0), steps=5, seeds=[1, 2, 3, 4], num_images=2)
    check(run, expected)
    assert run.prompts == (PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1])
    assert len(run.images) == 4


def test_pictures_equal_the_pipelines(kind):
    pipe = tiny_pipeline(kind)
    expected = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(0), num_inference_steps=3, guidance_scale=3.0).images[0]
    image = Engine.from_pipe(pipe).generate(PROMPTS[0], "", CFG(3.0), steps=3, seeds=[0]).images[0]
    assert image.size == expected.size
    difference = torch.tensor(list(image.tobytes()), dtype=torch.int16) - torch.tensor(
        list(expected.tobytes()), dtype=torch.int16
    )
    assert difference.abs().max() <= 1  # a rounding may fall to the other side


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_image_to_image_equals_the_pipeline(strength):
    from diffusers import StableDiffusion3Img2ImgPipeline

    pipe = tiny_pipeline("sd3.5-medium", scheduler=scheduler("static"))
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    other = StableDiffusion3Img2ImgPipeline(**pipe.components)
    seeded = torch.Generator().manual_seed(9)
    expected = other(
        PROMPTS[0],
        image=clean,
        strength=strength,
        num_inference_steps=5,
        guidance_scale=3.0,
        generator=seeded,
        output_type="latent",
    ).images
    engine = Engine.from_pipe(pipe)
    # a tensor with the latent's channels is taken as a latent upstream, and is not scaled
    run = engine.sample(engine.encode(PROMPTS[0]), CFG(3.0), steps=5, seeds=[9], latents=clean, strength=strength)
    check(run, expected)


def test_embeddings_serve_many_runs_and_outlive_the_encoders():
    engine = Engine.from_pipe(tiny_pipeline("sd3.5-medium"))
    expected = engine.generate(PROMPTS, "blurry", CFG(3.0), steps=3, seeds=0).latents
    embeddings = engine.encode(PROMPTS, "blurry")
    engine.free_text_encoders()
    assert torch.equal(engine.sample(embeddings, CFG(3.0), steps=3, seeds=0).latents, expected)
    with pytest.raises(ValueError, match=r"the pipeline has no text_encoder, text_encoder_2 \(freed"):
        engine.encode("a leaf")


def test_the_denoiser_drives_a_foreign_loop():
    engine = Engine.from_pipe(tiny_pipeline("sd3.5-medium"))
    embeddings = engine.encode(PROMPTS, "blurry")
    run = engine.sample(embeddings, CFG(3.0), steps=4, seeds=[1, 2])
    model = engine.denoiser(CFG(3.0), embeddings)
    x, levels = engine.draw_noise(run.plan, [1, 2]), run.plan.schedule.sigmas
    for s, t in zip(levels, levels[1:], strict=False):
        x = x + (x - model(x, torch.full((2,), s))) / s * (t - s)
    assert (x - run.latents).abs().max() <= RUN_ERROR * run.latents.abs().max()


def test_a_saved_pipeline_loads_and_draws_the_same(tmp_path):
    pipe = tiny_pipeline("sd3.5-medium")
    original = Engine.from_pipe(pipe)
    embeddings, schedule = original.encode("a leaf"), original.plan(steps=3).schedule
    expected = original.sample(embeddings, CFG(3.0), steps=3, seeds=0).latents
    pipe.save_pretrained(tmp_path / "pipeline")
    engine = Engine.from_pretrained(tmp_path / "pipeline", device="cpu")
    assert isinstance(engine, PromptEngine)
    check(engine.generate("a leaf", "", CFG(3.0), steps=3, seeds=0), expected)  # loaded encoders may lie at other alignments
    alone = Engine.from_pretrained(tmp_path / "pipeline" / "transformer", device="cpu")
    expected = engine.sample(embeddings, CFG(3.0), steps=3, seeds=0).latents
    assert torch.equal(alone.sample(embeddings, CFG(3.0), schedule=schedule, seeds=0).latents, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.generate([], guidance=CFG(2.0)), "prompt is empty"),
        (lambda e: e.generate("a leaf", height=7), "height must be a positive multiple of 4, got 7"),
        (lambda e: e.generate("a leaf", num_images=0), "num_images must be at least 1, got 0"),
        (lambda e: e.generate("a leaf", ["x", "y"], CFG(2.0)), "2 negative prompts do not fit 1 prompts"),
        (lambda e: e.generate("a leaf", guidance=CFG(2.0, condition="parent")), "condition 'parent' needs superclasses"),
        (lambda e: e.sample(e.encode("a leaf", None), CFG(2.0), steps=2), "the embeddings hold none"),
        (lambda e: e.sample(e.encode("a leaf"), steps=2, strength=0.5), r"strength 0\.5 needs a start"),
        (lambda e: e.generate("a leaf", strength=0.5), r"strength 0\.5 needs a start: pass latents or an image"),
        (lambda e: e.generate("a leaf", strength=1.0), r"strength 1\.0 needs a start"),
        (lambda e: e.generate("a leaf", image=START, strength=0.0), r"strength must lie in \(0, 1\], got 0\.0"),
        (lambda e: e.generate("a leaf", image=START, strength=1.5), r"strength must lie in \(0, 1\], got 1\.5"),
        (lambda e: e.generate("a leaf", image=START, strength=float("nan")), r"strength must lie in \(0, 1\], got nan"),
        (lambda e: e.generate("a leaf", image=START, latents=LATENT), "an image or from latents: give one of them"),
        (lambda e: e.generate("a leaf", image=START.expand(2, -1, -1, -1)), "2 start images do not fit 1 prompts"),
        (
            lambda e: e.generate(["x"] * 3, image=START.expand(2, -1, -1, -1)),
            "2 start images do not fit 3 prompts: give one, or",
        ),
        (lambda e: e.generate("a leaf", image=LATENT), "must have 3 channels, got 4; a latent goes to latents="),
        (lambda e: e.generate("a leaf", latents=LATENT, height=20), "latents of 8 x 8 do not fit the latent height 10"),
        (lambda e: e.sample(PromptEmbeddings(TEXT), latents=LATENT, width=6), "latents of 8 x 8 do not fit the latent width 6"),
        (lambda e: e.generate(PromptEmbeddings(TEXT), "blurry"), "negative_prompt 'blurry' to encode"),
        (lambda e: e.generate(PromptEmbeddings(TEXT), max_sequence_length=9), "give max_sequence_length 9 to encode"),
        (lambda e: e.generate(PromptEmbeddings(TEXT), guidance=CFG(2.0)), "the embeddings hold none"),
        (lambda e: e.generate("a leaf", seeds=[1, 2]), "2 seeds do not fit 1 samples"),
        (lambda e: e.generate("a leaf", num_images=0), "num_images must be at least 1, got 0"),
        (lambda e: e.decode(torch.zeros(1, 3, 8, 8)), r"latents must have shape \[B, 4, H, W\], got \[1, 3, 8, 8\]"),
        (lambda e: e.decode(LATENT, max_batch=0), "max_batch must be at least 1, got 0"),
        (lambda e: e.generate("a leaf", guidance=SkipLayer(1.0, (6,))), "layer 6 does not exist"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    engine = Engine.from_pipe(tiny_pipeline("sd3.5-medium"))
    with counted_rows() as rows, pytest.raises(ValueError, match=message) as caught:
        call(engine)
    assert not rows and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.generate("a leaf", step_count=3), "step_count"),
        (lambda e: e.generate(["a leaf", 3]), "a prompt must be a string, got 3"),
        (lambda e: e.generate(None), "a prompt must be a string or a list of strings, got None"),
        (lambda e: e.generate(["a leaf", None]), "a prompt must be a string, got None"),
        (lambda e: e.generate(7), "a prompt must be a string or a list of strings, got 7"),
        (lambda e: e.encode(None), "a prompt must be a string or a list of strings, got None"),
        (lambda e: e.sample("a leaf"), "sample takes embeddings, which encode.. makes of prompts, got 'a leaf'"),
    ],
)
def test_input_of_the_wrong_kind_is_refused_before_any_work(call, message, monkeypatch):
    engine = Engine.from_pipe(tiny_pipeline("sd3.5-medium"))
    monkeypatch.setattr(engine.pipe, "encode_prompt", None)
    with pytest.raises(TypeError, match=message):
        call(engine)


def test_an_engine_without_a_pipeline_says_what_it_cannot_do(tmp_path):
    tiny_pipeline("sd3.5-medium").transformer.save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path, device="cpu")
    for call, purpose in {
        lambda: engine.generate("a leaf"): "generate images from prompts",
        lambda: engine.encode("a leaf"): "encode prompts",
        lambda: engine.decode(LATENT): "decode latents",
        lambda: engine.use_vae_tiling(): "decode",
        lambda: engine.free_text_encoders(): "free the text encoders",
        lambda: engine.offload_text_encoders(): "offload the text encoders",
    }.items():
        with pytest.raises(ValueError, match=f"has a transformer only: it cannot {purpose}"):
            call()
