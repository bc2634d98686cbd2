"""The command line reads models of the hub and in other forms as the engine does, and writes latents without a VAE."""

import json

import pytest
import torch
from hub_stand_in import StandInHub
from official_dit import random_state
from PIL import Image, ImageChops
from safetensors import safe_open
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

from segue import CFG, EarlyExit, Engine
from segue.__main__ import app
from segue.engine.records.provenance import Origin

RUN = ["-g", "cfg:scale=3", "--steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline with other weights as variant fp16, and one without VAE and T5."""
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline(seed=8).save_pretrained(folder / "whole")
    tiny_pipeline(seed=1).save_pretrained(folder / "whole", variant="fp16")
    pipe = tiny_pipeline(seed=1)
    pipe.register_modules(vae=None, text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(folder / "bare")
    return folder


@pytest.fixture
def segue(tmp_path, monkeypatch):
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.stderr or result.exception
        if code:
            assert result.stderr.count("\n") == 1
        return result

    return run


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    return StandInHub(folder / "whole", tmp_path / "cache").install(monkeypatch)


def latent_of(path):
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("latent"), json.loads(file.metadata()["segue"])


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_drawn_recorded_and_drawn_again(segue, hub, folder):
    form = ["--revision", "v2", "--variant", "fp16", "--no-t5"]
    summary = json.loads(segue("sample", "--model", "owner/name", *form, *RUN, "-p", "leaf", "--out", "a.png", "--json").stdout)
    assert all(access["revision"] == "v2" for access in hub.asked)
    origin = summary["origin"]
    assert (origin["source"], origin["revision"], origin["variant"], origin["t5"]) == ("owner/name", "v2", "fp16", False)
    assert not any("encoder_3" in name or name.endswith("model.safetensors") for name in hub.fetched)
    engine = Engine.from_pretrained(folder / "whole", device="cpu", variant="fp16", t5=False)
    (expected,) = engine.generate("leaf", guidance=CFG(3.0), steps=2, seeds=[0]).images
    assert ImageChops.difference(Image.open("a.png"), expected).getbbox() is None
    del hub.asked[:]
    assert json.loads(segue("sample", "--from", "a.png", "--out", "b.png", "--json").stdout)["identical"]
    assert all(access["revision"] == "v2" for access in hub.asked)
    local = ["--model", folder / "whole", "--variant", "fp16"]
    assert json.loads(segue("sample", "--from", "a.png", "--out", "c.png", "--json", *local).stdout)["identical"]
    for option in (["--revision", "v3"], ["--variant", "fp8"], ["--t5"]):
        assert f"--from takes {option[0]} from the picture" in segue("sample", "--from", "a.png", *option, code=2).stderr


def test_bad_input_is_refused_before_weights_are_fetched(segue, hub):
    assert "give at least one --prompt" in segue("sample", "--model", "owner/name", code=2).stderr
    assert hub.fetched
    assert not any(name.endswith((".safetensors", ".bin")) for name in hub.fetched)


def test_a_plan_needs_no_weights_of_the_hub(segue, hub, folder):
    plans = [json.loads(segue("plan", "--model", model, *RUN, "--json").stdout) for model in ("owner/name", folder / "whole")]
    assert plans[0]["sigmas"] == plans[1]["sigmas"]
    assert plans[0]["cost"] == plans[1]["cost"]
    assert not any(name.endswith((".safetensors", ".bin")) for name in hub.fetched)


def test_records_without_the_form_of_a_model_are_read():
    earlier = {"source": "herbarium", "family": None, "model": "m", "weights": "0", "device": "cpu", "dtype": "float32"}
    origin = Origin(**earlier)
    assert (origin.heads, origin.exit_layer, origin.revision, origin.variant, origin.t5) == (None, None, None, None, True)


# --- latents ----------------------------------------------------------------------------------------------------------


def test_latents_are_those_of_the_engine_with_their_record(segue, folder):
    arguments = [
        "--model",
        folder / "bare",
        *RUN,
        "-p",
        "leaf",
        "-p",
        "bee",
        "--seeds",
        "4,5",
        "--output",
        "latent",
        "--out",
        "l",
    ]
    files = json.loads(segue("sample", *arguments, "--json").stdout)["files"]
    engine = Engine.from_pretrained(folder / "bare", device="cpu")
    expected = engine.generate(["leaf", "bee"], guidance=CFG(3.0), steps=2, seeds=[4, 5], output="latent").latents
    assert len(files) == 2
    for index, file in enumerate(files):
        latent, record = latent_of(file)
        assert torch.equal(latent, expected[index])
        assert (record["prompts"], record["seeds"], record["index"]) == (["leaf", "bee"], [4, 5], index)
    assert f"2 latents in {arguments[-1]}\n" in segue("sample", *arguments[:-1], "l").stdout
    arguments[arguments.index("cfg:scale=3")] = "cfg:scale=4"
    others = json.loads(segue("sample", *arguments, "--json").stdout)["files"]
    assert others == [file.replace(".safetensors", "-2.safetensors") for file in files]  # and those of before are there
    assert all(torch.equal(latent_of(file)[0], latent) for file, latent in zip(files, expected, strict=True))


def test_pictures_without_a_vae_are_refused_before_weights_are_read(segue, folder, monkeypatch, tmp_path):
    monkeypatch.setattr("segue.engine.prompts.engine.PromptEngine.from_folder", lambda *_, **__: pytest.fail("was loaded"))
    Image.new("RGB", (8, 8)).save("start.png")
    start = ["--model", folder / "bare", *RUN, "-p", "leaf"]
    for more in ([], ["--output", "pil"], ["--output", "latent", "--image", "start.png"]):
        assert "bare has no VAE to make pictures or to read them: ask" in segue("sample", *start, *more, code=2).stderr
    assert "has no VAE" in segue("compare", *start[:2], "-p", "leaf", "-r", "none", code=2).stderr
    latent = [*start, "--output", "latent"]
    assert "--grid False is for pictures" in segue("sample", *latent, "--no-grid", code=2).stderr
    assert "latents are written into a folder, got the file a.png" in segue("sample", *latent, "--out", "a.png", code=2).stderr
    assert "--output must be one of pil, latent, got 'np'" in segue("sample", *start, "--output", "np", code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["start.png"]


def test_a_class_label_model_of_latents_is_drawn_and_its_form_recorded(segue, tmp_path):
    state = random_state(4, depth=5, out_channels=4, mid_layer=True)
    torch.save(state, tmp_path / "repa.pt")
    arguments = ["--model", "repa.pt", "-g", "exit:weight=1,layer=3", "--steps", "2", "--classes", "3"]
    assert "give exit_layer, the number of blocks before it" in segue("sample", *arguments, "--heads", "2", code=2).stderr
    form = ["--heads", "2", "--branch-head", "3"]
    assert "latents with 4 channels are not pixels" in segue("sample", *arguments, *form, code=2).stderr
    (file,) = json.loads(segue("sample", *arguments, *form, "--output", "latent", "--json").stdout)["files"]
    latent, record = latent_of(file)
    engine = Engine.from_pretrained(tmp_path / "repa.pt", heads=2, exit_layer=3, device="cpu")
    assert torch.equal(latent, engine.sample([3], EarlyExit(1.0, layer=3), steps=2, seeds=[0]).latents[0])
    assert (record["origin"]["heads"], record["origin"]["exit_layer"]) == (2, 3)
    assert "exit" in segue("plan", "--model", "repa.pt", "-g", "exit:weight=1,layer=3", *form).stdout
