"""Adapters through the engine and the commands: merged, told of, recorded and drawn again, refused where they do not fit."""

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_tiny
from typer.testing import CliRunner

from segue.__main__ import app
from segue.engine.engine import Engine
from segue.models import bundled
from segue.models.adapted import AdaptedSiT, AdapterSpec
from segue.models.adapter_file import AdapterFacts, save_adapter
from segue.models.fingerprint import fingerprint
from segue.models.low_rank import LowRankSpec
from segue.models.weights import load_model

RULE = "sgg:scale=3,weight=1.5,layers=1,2,switch=0.6"
SAMPLES = ("--model", "tiny.safetensors", "--classes", "0,3", "--seeds", 7, "--steps", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny network, another one, and an adapter of the first that takes a scale."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "tiny.safetensors", seed=1)
    save_tiny(folder / "other.safetensors", seed=2)
    network, spec = load_model(folder / "tiny.safetensors")[0], AdapterSpec(LowRankSpec(2), (0.0, 2.0))
    adapted = AdaptedSiT(copy.deepcopy(network).float(), spec)
    generator = torch.Generator().manual_seed(3)
    for value in adapted.parameters():
        if value.requires_grad:
            value.data = torch.randn(value.shape, generator=generator) / 5
    weights = fingerprint({"main": network})
    save_adapter(adapted, folder / "guided.safetensors", AdapterFacts("tiny", weights, RULE, 4, "euler", (1.0, 0.0), spec))
    return folder


@pytest.fixture
def segue(folder, tmp_path, monkeypatch):
    """Runs a command in an empty folder beside links to the models."""
    monkeypatch.chdir(tmp_path)
    for item in folder.iterdir():
        (tmp_path / item.name).symlink_to(item)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.stderr or result.exception
        return result.stderr if code else result.stdout

    return run


def test_an_engine_with_an_adapter_says_so_and_warns_of_guidance_on_top(folder):
    path = folder / "guided.safetensors"
    engine = Engine.from_pretrained(folder / "tiny.safetensors", adapter=path, adapter_scale=0.5, device="cpu")
    assert f"adapter guided.safetensors at scale 0.5: {RULE}, trained on 4 steps of euler" in engine.explain()
    assert not engine.plan("none", 4).warnings
    (warning,) = engine.plan("cfg:scale=2", 4).warnings
    assert warning == f"cfg:scale=2 guides on top of the sgg adapter, which holds {RULE} already: sample it with none"
    plain = Engine.from_pretrained(folder / "tiny.safetensors", device="cpu")
    changed = [engine.sample([3], "none", steps=2, seeds=[1]).latents, plain.sample([3], "none", steps=2, seeds=[1]).latents]
    assert (changed[0] - changed[1]).abs().max() > 0.01
    record = engine.sample([3], "none", steps=2, seeds=[1]).record()
    assert (record.origin.adapter, record.origin.adapter_scale) == (str(path), 0.5)


def test_a_picture_by_an_adapter_is_unguided_by_default_and_drawn_again_from_its_record(segue):
    printed = segue("sample", *SAMPLES, "--adapter", "guided.safetensors", "--adapter-scale", 1.5, "--out", "old")
    assert printed.startswith("Unguided (none): 2 evaluations per picture, 1.00x unguided")
    (before,) = Path("old").glob("003*")
    assert "identical to" in segue("sample", "--from", before, "--out", "again.png")
    Path("moved").mkdir()
    Path("guided.safetensors").rename("moved/model.safetensors")
    assert "is no adapter here" in segue("sample", "--from", before, "--out", "no.png", code=2)
    assert "identical to" in segue("sample", "--from", before, "--adapter", "moved", "--out", "moved.png")
    refused = segue("sample", "--from", before, "--adapter", "moved", "--adapter-scale", 1, "--out", "no.png", code=2)
    assert "--from takes --adapter-scale from the picture" in refused


def test_a_comparison_has_a_row_for_the_adapter_beside_rules_of_the_plain_network(segue):
    segue("compare", *SAMPLES, "-r", "none", "-r", RULE, "--adapter", "guided.safetensors", "--out", "with.png")
    segue("compare", *SAMPLES, "-r", "none", "-r", RULE, "--out", "without.png")
    rows, plain = (json.loads(Path(name).read_text())["rules"] for name in ("with.json", "without.json"))
    assert [row["title"] for row in rows] == [*(row["title"] for row in plain), "sgg adapter"]
    assert rows[2]["summary"] == RULE and rows[2]["plan"]["cost"]["relative"] == 1.0
    assert "identical to" in segue("compare", "--from", "with.png", "--out", "again.png")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"adapter": "none.safetensors"}, FileNotFoundError, "is no adapter here"),
        ({"adapter": 3}, TypeError, "adapter must be a name, a file or a folder, got 3"),
        ({"adapter_scale": 1.0}, ValueError, "is of an adapter, and there is none"),
        ({"adapter": "guided.safetensors", "adapter_scale": 2.5}, ValueError, r"must lie in \[0, 2\]"),
        ({"adapter": "guided.safetensors", "adapter_scale": "much"}, TypeError, "adapter_scale must be a number"),
        ({"adapter": "tiny.safetensors"}, ValueError, "is no adapter of Segue"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_in_one_sentence(folder, options, error, words):
    if isinstance(options.get("adapter"), str):
        options = options | {"adapter": folder / options["adapter"]}
    with pytest.raises(error, match=words):
        Engine.from_pretrained(folder / "tiny.safetensors", device="cpu", **options)


def test_an_adapter_of_other_weights_is_refused(folder):
    with pytest.raises(ValueError, match="was made for tiny with weights"):
        Engine.from_pretrained(folder / "other.safetensors", adapter=folder / "guided.safetensors", device="cpu")


def test_bundled_adapters_are_known_by_name_and_hold_the_digest_of_their_model():
    for model, names in bundled.ADAPTERS.items():
        for name in names:
            bundled.adapter_file(model, name)
    with pytest.raises(ValueError, match="no adapter of herbarium is named 'none'; there is: sgg"):
        bundled.adapter_file("herbarium", "none")
