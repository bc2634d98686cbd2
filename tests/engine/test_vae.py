"""A class-label model whose latents are no pixels makes pictures by a VAE: those that diffusers makes of the same latents."""

import re

import numpy as np
import pytest
import torch
from hub_stand_in import StandInHub
from official_dit import random_state
from PIL import ImageChops
from safetensors.torch import load_file, save_file
from tiny_dit import dit_vae, tiny_dit_pipeline
from tiny_sd3 import tiny_pipeline

from segue import CFG, Engine
from segue.engine.adapters.vae import Decoder

diffusers = pytest.importorskip("diffusers")

RUN = {"labels": [1, 4, 2], "guidance": CFG(3.0), "steps": 2, "seeds": [5, 6, 7]}


def same(pictures, others) -> bool:
    pairs = zip(pictures, others, strict=True)
    return all(a.size == b.size and ImageChops.difference(a, b).getbbox() is None for a, b in pairs)


def decoded_by_pipeline(pipe, latents) -> list:
    """The last lines of ``DiTPipeline.__call__``."""
    samples = pipe.vae.decode(1 / pipe.vae.config.scaling_factor * latents).sample
    samples = (samples / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().numpy()
    return pipe.numpy_to_pil(samples)


@pytest.fixture(scope="module")
def pipe():
    return tiny_dit_pipeline(seed=3)


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    """A saved ``DiTPipeline``, an official SiT file, and VAEs: for its latents, for others, a tiny one."""
    folder = tmp_path_factory.mktemp("dit")
    pipe.save_pretrained(folder / "pipeline")
    torch.save(random_state(4, dim=64), folder / "sit.pt")
    dit_vae(8).save_pretrained(folder / "vae")
    dit_vae(8, channels=3).save_pretrained(folder / "vae-of-3")
    return folder


def sit(folder, **options):
    return Engine.from_pretrained(folder / "sit.pt", family="sit", heads=2, device="cpu", **options)


def test_a_pipeline_folder_makes_the_pictures_that_diffusers_makes(pipe, folder):
    engine = Engine.from_pretrained(folder / "pipeline", device="cpu")
    run = engine.sample(**RUN)
    expected = decoded_by_pipeline(pipe, run.latents)
    assert run.images[0].size == (12, 12)
    assert same(run.images, expected)
    assert same(engine.decode(run.latents, max_batch=2), expected)
    assert not same(run.images[:1], run.images[1:2])


@pytest.mark.parametrize("way", ["folder", "pipeline", "module"])
def test_a_vae_decodes_the_latents_of_any_checkpoint(pipe, folder, way):
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "pipeline" / "vae")
    if way == "module":
        engine = Engine(sit(folder).models["main"], device="cpu", vae=vae)
    else:
        engine = sit(folder, vae=folder / "pipeline" / ("vae" if way == "folder" else ""))
    run = engine.sample(**RUN, max_batch=2)
    assert same(run.images, decoded_by_pipeline(pipe, run.latents))


def test_statistics_of_latents_are_undone_by_channel(folder):
    """As diffusers' pipelines for SDXL: latents std / scale + mean."""
    mean, std = [0.3, -0.2, 0.1, 0.7], [1.5, 0.5, 2.0, 0.8]
    vae = dit_vae(8)
    plain, latents = Decoder(vae), torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    factor = vae.config.scaling_factor
    shifted = latents * torch.tensor(std).view(4, 1, 1) + factor * torch.tensor(mean).view(4, 1, 1)
    expected = plain.pictures(shifted)
    assert not same(expected, plain.pictures(latents))
    vae.register_to_config(latents_mean=mean, latents_std=std)
    assert same(Decoder(vae).pictures(latents), expected)


def test_the_tiny_autoencoder_is_read_and_decodes_as_it_is(folder, tmp_path):
    torch.manual_seed(2)
    blocks = {"encoder_block_out_channels": (4, 4, 4), "decoder_block_out_channels": (4, 4, 4)}
    tiny = diffusers.AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1)).eval()
    tiny.save_pretrained(tmp_path)
    run = sit(folder, vae=tmp_path).sample(**RUN)
    with torch.no_grad():
        pixels = tiny.decode(run.latents).sample
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert run.images[0].size == (24, 24)
    assert all(np.array_equal(np.asarray(image), level) for image, level in zip(run.images, levels, strict=True))


def test_without_a_vae_the_latents_stay(folder):
    with_vae = Engine.from_pretrained(folder / "pipeline", device="cpu").sample(**RUN)
    run = Engine.from_pretrained(folder / "pipeline", device="cpu", vae=False).sample(**RUN)
    assert torch.equal(run.latents, with_vae.latents)
    with pytest.raises(ValueError, match="4 channels are not pixels: give the VAE"):
        _ = run.images


def test_a_vae_that_does_not_fit_is_refused_before_its_weights_are_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Decoder, "read", lambda *_: pytest.fail("was read"))
    with pytest.raises(ValueError, match="the VAE takes latents of 3 channels, and the transformer makes 4: it cannot make"):
        sit(folder, vae=folder / "vae-of-3")
    with pytest.raises(ValueError, match="takes latents of 4 channels, and the transformer makes 3"):
        Engine.from_pretrained("herbarium", device="cpu", vae=folder / "vae")
    monkeypatch.setattr("segue.models.weights.load_model", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(FileNotFoundError, match=r"transformer' holds no VAE: expected the config.json of an AutoencoderKL or"):
        sit(folder, vae=folder / "pipeline" / "transformer")
    with pytest.raises(FileNotFoundError, match="'nowhere' holds no VAE"):
        sit(folder, vae="nowhere")
    with pytest.raises(ValueError, match="or False to leave a pipeline's own out, got True"):
        sit(folder, vae=True)
    with pytest.raises(TypeError, match=r"a module goes to Engine\(..., vae=module\)"):
        sit(folder, vae=dit_vae(8))


def test_a_module_that_is_no_vae_for_the_network_is_refused(folder):
    network = sit(folder).models["main"]
    with pytest.raises(TypeError, match="vae must be an autoencoder of diffusers such as AutoencoderKL, got a Linear"):
        Engine(network, device="cpu", vae=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="takes latents of 3 channels, and the transformer makes 4"):
        Engine(network, device="cpu", vae=dit_vae(8, channels=3))


def test_a_pipeline_for_prompts_brings_its_own(folder, tmp_path):
    tiny_pipeline(seed=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is for class-label models, and .* takes prompts: a pipeline brings its own VAE"):
        Engine.from_pretrained(tmp_path, device="cpu", vae=folder / "vae")


def test_weights_that_are_not_those_of_the_configuration_are_refused(folder, tmp_path):
    dit_vae(8).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"latent_channels": 4', '"latent_channels": 5'))
    with pytest.raises(ValueError, match="takes latents of 5 channels"):
        sit(folder, vae=tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"layers_per_block": 1', '"layers_per_block": 2'))
    with pytest.raises(
        ValueError, match=r"the weights in .* lack 'decoder.up_blocks.0.resnets.2.conv1.bias' and \d+ more tensors"
    ):
        sit(folder, vae=tmp_path)
    (tmp_path / "config.json").write_text(re.sub(r'"block_out_channels": \[\s*4,', '"block_out_channels": [6,', config))
    with pytest.raises(ValueError, match=r"holds no VAE that can be read: Cannot load because"):
        sit(folder, vae=tmp_path)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has a config.json and no weights of a VAE"):
        sit(folder, vae=tmp_path)


def test_a_vae_with_attention_under_the_names_of_earlier_releases_is_read(folder, tmp_path):
    """As the VAEs that were published with DiT's and SiT's latents."""
    dit_vae(8).save_pretrained(tmp_path)
    path, names = tmp_path / "diffusion_pytorch_model.safetensors", {"to_q": "query", "to_k": "key", "to_v": "value"}
    names |= {"to_out.0": "proj_attn"}
    tensors = load_file(path)
    earlier = {
        key: next((key.replace(f".{new}.", f".{old}.") for new, old in names.items() if f".{new}." in key), key)
        for key in tensors
    }
    assert sum(key != old for key, old in earlier.items()) == 16
    save_file({earlier[key]: value for key, value in tensors.items()}, path, {"format": "pt"})
    expected = sit(folder, vae=folder / "vae").sample(**RUN).images
    assert same(sit(folder, vae=tmp_path).sample(**RUN).images, expected)


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_of_the_hub_the_vae_is_fetched_where_it_is_used(folder, tmp_path, monkeypatch):
    hub = StandInHub(folder / "pipeline", tmp_path / "cache").install(monkeypatch)
    Engine.from_pretrained("owner/name", device="cpu", vae=False)
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert weights not in hub.fetched
    run = Engine.from_pretrained("owner/name", device="cpu").sample(**RUN)
    assert weights in hub.fetched
    assert same(run.images, Engine.from_pretrained(folder / "pipeline", device="cpu").sample(**RUN).images)


@pytest.mark.parametrize("place", ["vae", "pipeline"])
def test_of_a_hub_id_for_the_vae_nothing_else_is_fetched(folder, tmp_path, monkeypatch, place):
    hub = StandInHub(folder / place, tmp_path / "cache").install(monkeypatch)
    run = sit(folder, vae="owner/name").sample(**RUN)
    inside = "" if place == "vae" else "vae/"
    assert hub.fetched == {f"{inside}config.json", f"{inside}diffusion_pytorch_model.safetensors"}
    assert same(run.images, sit(folder, vae=folder / place).sample(**RUN).images)
