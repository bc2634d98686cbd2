"""Pipelines with parts missing or other parts run as diffusers runs them, or are refused in one sentence before any work."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attached_runs import relative_error
from counted_rows import counted_rows
from PIL import Image
from safetensors.torch import save_file
from tiny_sd3 import T5_TOKENS, tiny_components, tiny_pipeline

import segue
from segue import CFG, Engine
from segue.engine.prompts import saved_pipeline
from segue.models.mmdit_spec import MMDiTSpec
from tests.tolerances import ATTACHED_RUN

STEPS, SIZE = 4, {"height": 16, "width": 16}


def pipeline(kind="", **parts):
    """A tiny pipeline with some of its components replaced, or None."""
    import diffusers

    pipe = getattr(diffusers, f"StableDiffusion3{kind}Pipeline")(**(tiny_components() | parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_autoencoder(**changes):
    """An ``AutoencoderTiny`` of 2 pixels per latent, whose ``encode`` has no posterior."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(5)
        sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        sizes |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "latent_channels": 4}
        factors = {"scaling_factor": 1.3, "shift_factor": 0.2}
        return AutoencoderTiny(**(sizes | factors | changes)).eval().requires_grad_(False)


def picture():
    generator = torch.Generator().manual_seed(2)
    return Image.fromarray(torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8).numpy())


def generate(engine, **options):
    options = {"steps": STEPS, "seeds": [3], "max_sequence_length": T5_TOKENS} | SIZE | options
    return engine.generate("leaf", guidance=CFG(3.0), **options)


def upstream(pipe, output="latent", **options):
    generator = [torch.Generator().manual_seed(3)]
    common = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "max_sequence_length": T5_TOKENS, "output_type": output}
    return pipe("leaf", generator=generator, **(SIZE | common | options)).images


def refused(engine, message, monkeypatch, error=ValueError, **options):
    """``generate`` raises one sentence before prompts are encoded and before any network call."""
    monkeypatch.setattr(engine, "encode", lambda *_, **__: pytest.fail("prompts were encoded"))
    with counted_rows() as rows, pytest.raises(error, match=message) as caught:
        generate(engine, **options)
    assert not rows
    assert "\n" not in str(caught.value)


# --- the VAE ----------------------------------------------------------------------------------------------------------


def test_without_a_vae_latents_are_the_pipelines_and_pictures_are_refused_early(monkeypatch):
    pipe = pipeline(vae=None)
    engine, size = Engine.from_pipe(pipe), {"height": 64, "width": 64}  # diffusers counts 8 pixels per latent without a VAE
    run = generate(engine, output="latent", **size)
    assert relative_error(run.latents, upstream(pipe, **size)) < ATTACHED_RUN
    assert run.images == []
    assert run.prompts == ("leaf",)
    with pytest.raises(ValueError, match="no VAE to decode latents"):
        engine.decode(run.latents)
    with pytest.raises(ValueError, match="no VAE to decode in tiles"):
        engine.use_vae_tiling()
    refused(engine, "has no VAE to make pictures: ask for output='latent'", monkeypatch)
    refused(engine, "no VAE to encode a start image: give latents", monkeypatch, image=picture(), output="latent")


def test_latents_alone_are_those_that_the_pictures_are_made_of():
    engine = Engine.from_pipe(tiny_pipeline())
    latents = generate(engine, output="latent")
    assert torch.equal(latents.latents, generate(engine).latents)
    with pytest.raises(ValueError, match="output must be one of pil, latent, got 'np'"):
        generate(engine, output="np")


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_tiny_autoencoder_draws_and_starts_as_in_the_pipelines(strength):
    pipe = pipeline(vae=tiny_autoencoder())
    engine = Engine.from_pipe(pipe)
    (expected,) = upstream(pipe, "pt")
    drawn = torch.from_numpy(np.array(generate(engine).images[0])).permute(2, 0, 1)
    assert (drawn - 255 * expected).abs().max() <= 1  # rounded to 8 bits
    start = pipeline("Img2Img", **pipe.components)
    run = generate(engine, image=picture(), strength=strength)
    assert relative_error(run.latents, upstream(start, image=picture(), strength=strength)) < ATTACHED_RUN


def test_factors_that_a_vae_does_not_state_are_one_and_zero():
    stated, unstated = ({"scaling_factor": scale, "shift_factor": shift} for scale, shift in ((1.0, 0.0), (None, None)))
    pipes = [pipeline(vae=tiny_autoencoder(**factors)) for factors in (stated, unstated)]
    expected, run = (generate(Engine.from_pipe(pipe), image=picture(), strength=0.5) for pipe in pipes)
    assert torch.equal(run.latents, expected.latents)
    assert run.images == expected.images


def test_other_encodings_are_read_or_refused(monkeypatch):
    pipe = pipeline(vae=tiny_autoencoder())
    engine, encode = Engine.from_pipe(pipe), pipe.vae.encode
    expected = generate(engine, image=picture()).latents
    monkeypatch.setattr(pipe.vae, "encode", lambda x: SimpleNamespace(latent=encode(x).latents))  # as AutoencoderDC
    assert torch.equal(generate(engine, image=picture()).latents, expected)
    monkeypatch.setattr(pipe.vae, "encode", lambda x: SimpleNamespace(codes=x))
    with (
        counted_rows() as rows,
        pytest.raises(TypeError, match="encodes pictures to a SimpleNamespace, which holds no latents"),
    ):
        generate(engine, image=picture())
    assert not rows


def test_a_vae_for_other_channels_is_refused_early(monkeypatch):
    engine = Engine.from_pipe(pipeline(vae=tiny_autoencoder(latent_channels=6)))
    assert generate(engine, output="latent").latents.shape == (1, 4, 8, 8)
    message = "takes latents of 6 channels, and the transformer makes 4: it cannot "
    refused(engine, message + "make pictures: ask for output='latent'", monkeypatch)
    refused(engine, message + "encode a start image", monkeypatch, output="latent", image=picture())


# --- the text encoders ------------------------------------------------------------------------------------------------


def test_without_t5_a_run_is_the_pipelines():
    pipe = pipeline(text_encoder_3=None, tokenizer_3=None)
    assert relative_error(generate(Engine.from_pipe(pipe)).latents, upstream(pipe)) < ATTACHED_RUN


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (["tokenizer_2"], "tokenizer_2"),
        (["tokenizer_3"], "tokenizer_3"),
        (["text_encoder"], "text_encoder"),
        (["text_encoder", "tokenizer", "text_encoder_2"], "text_encoder, text_encoder_2, tokenizer"),
    ],
)
def test_what_prompts_need_and_a_pipeline_lacks_is_named(missing, named):
    engine = Engine.from_pipe(pipeline(**dict.fromkeys(missing)))
    with (
        counted_rows() as rows,
        pytest.raises(ValueError, match=rf"has no {named} \(freed, or never loaded\), which prompts need"),
    ):
        generate(engine)
    assert not rows


def test_embeddings_need_no_encoders():
    whole, engine = Engine.from_pipe(pipeline()), Engine.from_pipe(pipeline(text_encoder=None, tokenizer_2=None))
    embeddings = whole.encode("leaf", max_sequence_length=T5_TOKENS)
    run = engine.generate(embeddings, guidance=CFG(3.0), steps=STEPS, seeds=[3], **SIZE)
    assert relative_error(run.latents, generate(whole).latents) < ATTACHED_RUN


# --- the transformer --------------------------------------------------------------------------------------------------

INPAINTING = "takes 9 channels and gives 4: it is an inpainting one, which needs a mask"


def test_an_inpainting_transformer_is_refused_before_any_weights_are_read(tmp_path):
    pipe = tiny_pipeline(in_channels=9, out_channels=4)
    pipe.register_modules(vae=tiny_pipeline().vae)
    pipe.save_pretrained(tmp_path / "pipeline")
    for weights in (tmp_path / "pipeline").rglob("*.safetensors"):
        weights.write_bytes(b"never read")
    for call in (
        lambda: Engine.from_pipe(pipe),
        lambda: segue.attach(pipe, guidance=CFG(2.0)),
        lambda: Engine.from_pretrained(tmp_path / "pipeline", device="cpu"),
    ):
        with pytest.raises(ValueError, match=INPAINTING) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_transformer_that_gives_other_channels_says_so(tmp_path):
    from segue.models.mmdit import MMDiT

    for taken, given, message in ((9, 4, INPAINTING), (6, 4, "takes 6 channels and gives 4; it must give as many as it takes")):
        spec = MMDiTSpec("s", given, 12, 12, 2, 64, 2, 1, text_dim=24, pooled_dim=20, position_size=6)
        tensors = MMDiT(spec).state_dict() | {"x_embedder.proj.weight": torch.zeros(64, taken, 2, 2)}
        save_file(tensors, tmp_path / "file.safetensors")
        with pytest.raises(ValueError, match=message):
            Engine.from_pretrained(tmp_path / "file.safetensors", device="cpu")


def test_the_output_channels_of_a_configuration_that_leaves_them_out_are_those_of_diffusers():
    from diffusers import SD3Transformer2DModel

    config = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "caption_projection_dim": 8}
    for given in ({}, {"in_channels": 16}, {"in_channels": 4, "out_channels": None}):
        theirs = SD3Transformer2DModel(**config, **given)
        spec = MMDiTSpec.from_config(config | given, "tiny")
        assert (spec.channels, spec.out_channels) == (theirs.config.in_channels, theirs.out_channels)
    with pytest.raises(ValueError, match="takes 33 channels and gives 16: it is an inpainting one"):
        MMDiTSpec.from_config(config | {"in_channels": 33}, "tiny")


# --- saved pipelines --------------------------------------------------------------------------------------------------


def test_without_transformers_a_saved_pipeline_says_what_to_install(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    monkeypatch.setattr(saved_pipeline, "find_spec", lambda name: None)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()  # none is read before
    with pytest.raises(
        ValueError, match=r"needs the package transformers, and that is not installed: pip install transformers"
    ):
        Engine.from_pretrained(tmp_path, device="cpu")


def test_a_saved_pipeline_that_lacks_a_part_of_its_index_names_it(tmp_path):
    import shutil

    tiny_pipeline().save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "text_encoder_3")
    message = "is a pipeline without its text_encoder_3 folder: give t5=False to run without it"
    with pytest.raises(FileNotFoundError, match=message):
        Engine.from_pretrained(tmp_path, device="cpu")
    expected = generate(Engine.from_pipe(pipeline(text_encoder_3=None, tokenizer_3=None)))
    assert (
        relative_error(generate(Engine.from_pretrained(tmp_path, device="cpu", t5=False)).latents, expected.latents)
        < ATTACHED_RUN
    )
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"is a pipeline without a vae/config\.json"):
        Engine.from_pretrained(tmp_path, device="cpu", t5=False)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model_index\.json must hold a JSON object, got a list"):
        Engine.from_pretrained(tmp_path, device="cpu")
