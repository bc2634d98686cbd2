"""Training settings and recipes: refused in one sentence when wrong, and what ships is what is stated."""

from dataclasses import asdict

import pytest
import torch

from segue.models.sit import SiT
from segue.training.data.species import PARENTS, SPECIES
from segue.training.recipes import RECIPES, get_recipe
from segue.training.settings import TrainSettings

BUNDLE_BYTES = 15e6


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    (
        ("steps", 0, "at least 1"),
        ("batch_size", -2, "at least 1"),
        ("checkpoint_every", 0, "at least 1"),
        ("warmup", -1, "at least 0"),
        ("workers", -1, "at least 0"),
        ("minutes", float("nan"), "at least 0"),
        ("weight_decay", float("inf"), "finite"),
        ("learning_rate", 0.0, "positive"),
        ("learning_rate", float("nan"), "positive"),
        ("clip", -1.0, "positive"),
        ("exit_weight", -0.1, "at least 0"),
        ("final_learning_rate", 1.1, r"\[0, 1\]"),
        ("ema", 1.0, r"\[0, 1\)"),
        ("seed", 2**31, r"\[0, 2\^31\)"),
        ("dtype", "float16", "bfloat16 or float32"),
        ("device", "tpu", "cpu or cuda"),
    ),
)
def test_bad_settings_are_refused_with_the_value_and_what_is_accepted(name, value, accepted):
    with pytest.raises(ValueError, match=f"{name} must be .*{accepted}.*, got {value!r}"):
        TrainSettings(**{name: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="'cuda:1', but there is no CUDA device"):
        TrainSettings(device="cuda:1")


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"compile needs a C\+\+ compiler"):
        TrainSettings(compile=True)


def test_settings_survive_being_written_down():
    settings = get_recipe("herbarium-weak").settings
    assert TrainSettings.from_dict(asdict(settings)) == settings
    with pytest.raises(ValueError, match="no training setting 'momentum'"):
        TrainSettings.from_dict({"momentum": 0.9})


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown recipe 'roses'; there are: herbarium, herbarium-64, herbarium-weak"):
        get_recipe("roses")


def test_the_bundled_networks_fit_their_budget_and_share_their_labels():
    strong, weak = (RECIPES[name].spec for name in ("herbarium", "herbarium-weak"))
    counts = [sum(p.numel() for p in SiT(spec).parameters()) for spec in (strong, weak)]
    assert 2 * sum(counts) < BUNDLE_BYTES, "two bytes a parameter"
    assert counts[0] > 4 * counts[1]
    for spec in (strong, weak):
        assert (spec.parents, spec.class_names) == (PARENTS, SPECIES)
    assert strong.exits and all(recipe.spec.name == name for name, recipe in RECIPES.items())
