"""`segue sample` draws a DiT or a SiT by a VAE, records it, and draws the picture again with no other."""

import json

import pytest
import torch
from official_dit import random_state
from PIL import Image, ImageChops
from tiny_dit import dit_vae, tiny_dit_pipeline
from typer.testing import CliRunner

from segue import CFG, Engine
from segue.__main__ import app
from segue.engine.images import read_png

RUN = ["-g", "cfg:scale=3", "--classes", "2,5", "--steps", "2"]
SIT = ["--model", "sit.pt", "--family", "sit", "--heads", "2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_dit_pipeline(seed=3).save_pretrained(folder / "pipeline")
    torch.save(random_state(4), folder / "sit.pt")
    dit_vae(8).save_pretrained(folder / "vae")
    dit_vae(9).save_pretrained(folder / "other-vae")
    return folder


@pytest.fixture
def segue(models, tmp_path, monkeypatch):
    """Runs a command in a folder with the models; a refusal is one line, which is returned."""
    for file in models.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["sample", *map(str, arguments)])
        assert result.exit_code == code, result.stderr or result.exception
        if code:
            assert result.stderr.count("\n") == 1
        return result.stderr if code else json.loads(result.stdout)

    return run


def same(file, picture) -> bool:
    return ImageChops.difference(Image.open(file), picture).getbbox() is None


def redrawn(segue, file, *options) -> bool:
    return segue("--from", file, "--out", "again.png", "--json", "--force", *options)["identical"]


def test_a_checkpoint_and_a_vae_make_pictures_that_are_drawn_again(segue):
    summary = segue(*SIT, "--vae", "vae", *RUN, "--max-batch", "1", "--json")
    engine = Engine.from_pretrained("sit.pt", family="sit", heads=2, device="cpu", vae="vae")
    pictures = engine.sample([2, 5], CFG(3.0), steps=2, seeds=[0, 1], max_batch=1).images
    files = summary["files"]
    assert all(same(file, picture) for file, picture in zip(files[:2], pictures, strict=True))
    _, record = read_png(files[0])
    assert record["origin"]["vae"] == "vae"
    assert record["origin"]["pixels_per_latent"] == 2
    assert "Size: 12x12" in Image.open(files[0]).info["parameters"]
    assert all(redrawn(segue, file) for file in files)
    assert redrawn(segue, files[0], "--vae", "vae/../vae")
    assert "the picture was made by a VAE of weights" in segue("--from", files[0], "--vae", "other-vae", code=2)


def test_a_pipeline_folder_makes_pictures_without_options(segue):
    file, *_ = segue("--model", "pipeline", *RUN, "--json")["files"]
    engine = Engine.from_pretrained("pipeline", device="cpu")
    assert same(file, engine.sample([2, 5], CFG(3.0), steps=2, seeds=[0, 1]).images[0])
    _, record = read_png(file)
    assert record["origin"]["vae"] is None
    assert redrawn(segue, file)
    assert redrawn(segue, file, "--model", "pipeline/transformer", "--vae", "pipeline")
    assert "4 channels are not pixels" in segue("--from", file, "--model", "pipeline/transformer", code=2)


def test_latents_need_no_vae(segue, monkeypatch):
    monkeypatch.setattr("segue.engine.engine.Decoder.read", lambda *_: pytest.fail("the VAE was read"))
    summary = segue("--model", "pipeline", *RUN, "--output", "latent", "--json")
    assert summary["origin"]["vae_weights"] is None
    latent = ["--output", "latent", "--out", "l"]
    assert "latents are written as they are; --vae vae does not apply" in segue(*SIT, "--vae", "vae", *latent, code=2)
    assert "4 channels are not pixels: give the VAE" in segue(*SIT, *RUN, code=2)


def test_the_record_of_pixels_takes_no_vae(segue):
    file, *_ = segue("--classes", "3", "--steps", "1", "-g", "none", "--json")["files"]
    assert "takes latents of 4 channels, and the transformer makes 3" in segue("--from", file, "--vae", "vae", code=2)
