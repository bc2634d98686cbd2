"""Training as a part of a visit: it waits for the card's own times, and leaves two small files."""

import json
from dataclasses import replace

import pytest
import torch
from training_fixtures import TINY_SPEC, tiny_settings

from segue.bench import train_part
from segue.models.weights import load_network
from segue.training import recipes
from segue.training.data.herbarium import Herbarium
from segue.training.recipes import Recipe, get_recipe


def test_it_trains_the_recipe_for_its_time_and_leaves_the_average_and_the_log(tmp_path, monkeypatch):
    spec = replace(TINY_SPEC, name="herbarium-64", height=64, width=64)
    recipe = Recipe(spec, tiny_settings(steps=3), Herbarium(64))
    monkeypatch.setitem(recipes.RECIPES, "herbarium-64", recipe)
    monkeypatch.setattr(train_part, "WORKERS", 0)
    train_part.train(tmp_path, 200.0, "cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["herbarium-64.safetensors", "log.jsonl"]
    network, _ = load_network(tmp_path / "herbarium-64.safetensors")
    assert network.spec == spec and next(network.parameters()).dtype == torch.float16
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_the_recipe_is_the_bundled_network_at_twice_the_size_and_fits_the_limit():
    recipe, bundled = get_recipe("herbarium-64"), get_recipe("herbarium")
    assert replace(recipe.spec, name="herbarium", height=32, width=32) == bundled.spec
    assert recipe.source.shape == (3, 64, 64)
    with torch.device("meta"):
        count = sum(p.numel() for p in recipe_network(recipe).parameters())
    assert 2 * count < 11.6e6, "in half precision"


def recipe_network(recipe):
    from segue.models.sit import SiT

    return SiT(recipe.spec)


def test_it_waits_for_the_times_of_its_card(tmp_path, monkeypatch, capsys):
    results = train_part.Path(train_part.__file__).parent / "results"
    assert train_part.rows_of_card(results, "NVIDIA H100 80GB HBM3") > 0
    assert train_part.rows_of_card(results, "NVIDIA B300") == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(train_part, "device_name", lambda device: "NVIDIA B300")
    monkeypatch.setattr("sys.argv", ["train_part", "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit, match="no times of NVIDIA B300 are committed"):
        train_part.main()
    assert not (tmp_path / "x").exists()
