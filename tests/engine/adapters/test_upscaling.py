"""Larger pictures of a finished run: consistent with what was drawn, recorded, drawn again; and what is refused."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import randomize, tiny_sit
from typer.testing import CliRunner

from segue import Engine
from segue.__main__ import app
from segue.engine.adapters.upscaling import Upscaler
from segue.models.enhancer import Enhancer, EnhancerSpec, load_enhancer
from segue.models.spectrum import reduce
from segue.models.weights import save_model


def bicubic(pictures):
    return F.interpolate(pictures, scale_factor=2, mode="bicubic")


@pytest.fixture
def enhancer(seed, tmp_path):
    path = tmp_path / "enhancer.safetensors"
    save_model(randomize(Enhancer(EnhancerSpec("small", 3, 8, 1, factor=3)), seed), path)
    return path


def test_the_herbarium_draws_pictures_of_twice_its_size():
    """Reducing them gives the samples again; more than interpolation, and no sample has changed."""
    engine = Engine.from_pretrained("herbarium", device="cpu")
    run = engine.sample([3, 40], steps=2, seeds=5, upscale=2)
    assert torch.equal(run.latents, engine.sample([3, 40], steps=2, seeds=5).latents)
    assert run.enlarged.shape == (2, 3, 64, 64) and run.images[0].size == (64, 64)
    assert (reduce(run.enlarged, 32, 32) - run.latents).abs().max() < 1e-4
    assert (run.enlarged - bicubic(run.latents)).abs().max() > 1e-2
    assert run.record().origin.upscale == "herbarium-enhancer" and run.record().size == (64, 64)


@pytest.mark.parametrize("height, width", ((6, 10), (5, 7)))
def test_any_enhancer_is_consistent_at_any_size(height, width, enhancer, seed):
    x = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    for upscaler, factor in ((Upscaler(load_enhancer(enhancer)), 3), (Upscaler(bicubic), 2)):
        y = upscaler(x)
        assert y.shape == (3, 3, factor * height, factor * width)
        assert torch.allclose(reduce(y, height, width), x, atol=1e-5)  # a transform there and back in fp32
        assert torch.allclose(upscaler(x[1:2]), y[1:2], atol=1e-5)


def test_a_picture_is_drawn_again_at_its_size(enhancer, seed, tmp_path):
    checkpoint, drawn = tmp_path / "small.safetensors", tmp_path / "a.png"
    save_model(tiny_sit(seed, channels=3), checkpoint)
    command = ["sample", "--model", str(checkpoint), "-g", "none", "--classes", "1", "--steps", "2", "--out", str(drawn)]
    result = CliRunner().invoke(app, [*command, "--upscale", str(enhancer)])
    assert result.exit_code == 0 and f"enlarged 3x by {enhancer}" in result.stdout, result.stderr
    assert Image.open(drawn).size == (30, 18)
    assert json.loads(Image.open(drawn).text["segue"])["origin"]["upscale"] == str(enhancer)
    result = CliRunner().invoke(app, ["sample", "--from", str(drawn), "--out", str(tmp_path / "again")])
    assert result.exit_code == 0 and "identical to" in result.stdout, result.stderr
    save_model(randomize(Enhancer(EnhancerSpec("small", 3, 8, 1, factor=3)), seed + 1), enhancer)
    result = CliRunner().invoke(app, ["sample", "--from", str(drawn), "--out", str(tmp_path / "other")])
    assert result.exit_code == 2 and "the picture was enlarged by weights" in result.stderr


def test_a_function_enlarges_and_is_not_recorded(seed):
    run = Engine(tiny_sit(seed, channels=3), device="cpu").sample([0], steps=1, seeds=1, upscale=bicubic)
    assert run.images[0].size == (20, 12)
    with pytest.raises(ValueError, match="its pictures were enlarged by a function"):
        run.record()


@pytest.mark.parametrize(
    ("upscale", "error", "words"),
    (
        (2, ValueError, "upscale=2: the model has no enhancer of its own; give the file of one"),
        (True, TypeError, "upscale must be a factor .*; got True"),
        (2.5, TypeError, "got 2.5"),
        ("no/such.safetensors", FileNotFoundError, "no/such.safetensors"),
        ("herbarium-enhancer", ValueError, "enlarges pictures of 3 channels, and the model draws 4"),
    ),
)
def test_what_enlarges_nothing_is_refused(upscale, error, words, seed):
    with pytest.raises(error, match=words):
        Engine(tiny_sit(seed), device="cpu").sample([0], steps=1, upscale=upscale)


def test_an_enhancer_of_another_shape_is_named():
    x = torch.zeros(2, 3, 4, 6)
    for function, words in (
        (lambda x: x[:1], r"by a whole factor, got \[1, 3, 4, 6\]"),
        (lambda x: F.interpolate(x, size=(9, 12)), r"got \[2, 3, 9, 12\]"),
        (lambda x: None, "got NoneType"),
        (lambda x: bicubic(x) / 0, "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            Upscaler(function)(x)


def test_where_it_does_not_apply(tmp_path):
    for options, words in (
        (["--out", str(tmp_path / "x.npz"), "--count", "2"], "holds samples as they are drawn; --upscale 2 does not apply"),
        (["--output", "latent", "--out", str(tmp_path)], "latents are written as they are; --upscale 2 does not apply"),
        (["--upscale", "3"], "herbarium has an enhancer by the factor 2, got upscale=3"),
    ):
        result = CliRunner().invoke(app, ["sample", "--upscale", "2", "--classes", "0", "--steps", "1", *options])
        assert result.exit_code == 2 and words in result.stderr, result.stderr


def test_files_that_are_no_enhancer_are_refused(tmp_path, seed):
    save_model(tiny_sit(seed), tmp_path / "sit.safetensors")
    with pytest.raises(ValueError, match="is not an enhancer; its header describes another network"):
        load_enhancer(tmp_path / "sit.safetensors")
    with pytest.raises(ValueError, match="enlarges by a factor of at least 2, got 1"):
        EnhancerSpec("x", 3, 8, 1, factor=1)
    with pytest.raises(ValueError, match=r"enlarges pictures \[B, 3, H, W\], got \[1, 4, 8, 8\]"):
        Enhancer(EnhancerSpec("x", 3, 8, 1))(torch.zeros(1, 4, 8, 8))
