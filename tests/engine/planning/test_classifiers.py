"""Classifiers that guide: by name from libraries that stand in, behind a VAE, in the plan's count, in records and commands."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_models import randomize, tiny_sit
from tiny_sd3 import tiny_vae
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from segue import GFCG, Engine
from segue.__main__ import app
from segue.engine.planning.classifiers import ImageNetClassifier, named_classifier, traced

MEAN, DEVIATION = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


class Backbone(nn.Module):
    """Six logits of pictures of ten pixels by ten; remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.seen = nn.Conv2d(3, 5, 3, 2), nn.Linear(5, 6), []
        randomize(self, 4)

    def forward(self, pictures):
        self.seen.append(pictures)
        return self.head(self.conv(pictures).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def vae():
    return tiny_vae(seed=3)  # before diffusers could find a stand-in


@pytest.fixture
def libraries(monkeypatch, vae):
    """timm and torchvision as far as they are asked; the backbones that they made."""
    made = []

    def create(name, **options):
        made.append((name, options, Backbone()))
        return made[-1][2]

    config = {"input_size": (3, 10, 10), "mean": MEAN, "std": DEVIATION}
    timm = SimpleNamespace(create_model=create, data=SimpleNamespace(resolve_model_data_config=lambda network: config))
    choice = SimpleNamespace(transforms=lambda: SimpleNamespace(crop_size=[10], mean=MEAN, std=DEVIATION))
    models = SimpleNamespace(get_model_weights=lambda name: {"DEFAULT": choice}, get_model=create)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    named_classifier.cache_clear()
    yield made
    named_classifier.cache_clear()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_is_asked_for_a_classifier_by_name(libraries, library):
    classifier = named_classifier(f"{library}:net.a1")
    ((name, _, backbone),) = libraries
    assert name == "net.a1" and not any(parameter.requires_grad for parameter in classifier.parameters())
    pictures = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert classifier(pictures).shape == (2, 6)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    torch.testing.assert_close(backbone.seen[-1], ((pictures + 1) / 2 - mean) / deviation)
    assert classifier(torch.zeros(1, 3, 33, 17)).shape == (1, 6) and backbone.seen[-1].shape == (1, 3, 10, 10)


def test_a_library_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="the classifier needs timm, which cannot be imported here"):
        named_classifier("timm:net.b2")
    with pytest.raises(ValueError, match="unknown classifier 'net'; accepted: herbarium-classifier, herbarium-judge, "):
        named_classifier("net")
    with pytest.raises(FileNotFoundError):
        named_classifier("nowhere.safetensors")


def test_operations_are_counted_from_shapes_and_unknown_where_values_decide():
    network = ImageNetClassifier(Backbone(), 10, MEAN, DEVIATION)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 6, 10))
    assert traced(network, (3, 6, 10)) == (6, counter.get_total_flops())
    assert traced(lambda clean: clean.mean() if clean.sum() else None, (3, 6, 10)) == (None, None)


def test_a_named_classifier_sees_latents_behind_the_vae(libraries, vae):
    engine = Engine(tiny_sit(), device="cpu", vae=vae)
    rule = "gfcg:weight=2,classifier=timm:net.a1,lag=0"
    found = engine.sample([0, 3], rule, steps=3, seeds=[1, 2])
    classifier = named_classifier("timm:net.a1")

    def by_hand(latents):
        return classifier(vae.decode(latents / 1.5305 + 0.0609).sample)

    wanted = engine.sample([0, 3], GFCG(2.0, classifier=by_hand, lag=0), steps=3, seeds=[1, 2])
    assert torch.equal(found.latents, wanted.latents)
    with FlopCounterMode(display=False) as counter:
        by_hand(torch.zeros(1, 4, 6, 10))
    (flops,) = found.plan.classifier_flops.values()
    assert flops == counter.get_total_flops() > 1e6  # the decoder's are most of it
    assert found.plan.call_cost(found.plan.live[0])[2] == wanted.plan.call_cost(wanted.plan.live[0])[2]
    bare = Engine(tiny_sit(), device="cpu")
    assert "operations unknown and not counted" in str(bare.plan(rule, steps=3))
    with pytest.raises(
        ValueError, match=r"timm:net.a1 reads pictures and tiny makes latents of 4 channels: give the engine a VAE"
    ):
        bare.sample([0], rule, steps=3, seeds=[1])


def test_a_classifier_of_pictures_of_another_size_is_refused():
    engine = Engine.from_pretrained("herbarium", device="cpu")
    with pytest.raises(ValueError, match="reads pictures 3 x 32 x 32, and the model makes 3 x 24 x 40"):
        engine.plan("gfcg", steps=2, height=24, width=40)
    plan = engine.plan("gfcg", steps=3)
    work = 129692928  # of the bundled classifier, by PyTorch's own count
    assert plan.call_cost(plan.live[1])[2] - plan.call_cost(plan.live[2])[2] == work + _projection(engine.spec)
    assert work / engine.spec.forward_flops(32, 32) == pytest.approx(0.25, abs=0.01)  # as docs/guidance.md says


def _projection(spec) -> int:
    """Branches that a classifier looks at are projected apart: one projection more."""
    return spec.readout_flops(spec.tokens(32, 32))


@pytest.mark.parametrize("rule", ["gfcg:weight=1,classifier=herbarium-classifier,form=ag-swap,gain=1", "icg:scale=2"])
def test_a_picture_by_a_named_classifier_is_drawn_again(tmp_path, monkeypatch, rule):
    monkeypatch.chdir(tmp_path)
    options = ["--classes", "3", "--seeds", "7", "--steps", "2", "-g", rule, "--out", "leaf.png"]
    made = CliRunner().invoke(app, ["sample", *options])
    assert made.exit_code == 0, made.stderr
    with Image.open("leaf.png") as picture:
        assert rule in picture.info["parameters"]
    again = CliRunner().invoke(app, ["sample", "--from", "leaf.png", "--out", "again.png", "--json"])
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["identical"] and json.loads(again.stdout)["rule"] == rule


def test_a_callable_is_in_no_record():
    engine = Engine.from_pretrained("herbarium", device="cpu")
    run = engine.sample([0], GFCG(1.0, classifier=named_classifier("herbarium-classifier")), steps=1, seeds=[1])
    with pytest.raises(ValueError, match="its classifier Classifier is a Python callable, which no text can name"):
        run.record()
