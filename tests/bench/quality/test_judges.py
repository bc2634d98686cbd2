"""Judges by name: what they see is what the extractor of that name sees, and other weights are another name."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from segue.bench.quality.judges import named_judge, short_name
from segue.bench.scores.extractors import RandomConvolutions, colour_statistics
from segue.models.bundled import CLASSIFIERS
from segue.models.classifiers import Classifier as LeafClassifier
from segue.models.classifiers import ClassifierSpec
from segue.models.weights import save_model

CPU = torch.device("cpu")


class Classifier(nn.Module):
    """Features and two classes of them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.zeros_(self.layer.bias)

    def features(self, pictures):
        return pictures.mean(dim=(2, 3))

    def forward(self, pictures):
        return self.layer(self.features(pictures))


@pytest.fixture
def module(monkeypatch):
    found = ModuleType("stand_in_judges")
    found.Classifier, found.classifier, found.number = Classifier, Classifier(), 5
    found.mean = lambda pictures: pictures.mean(dim=(2, 3))
    monkeypatch.setitem(sys.modules, "stand_in_judges", found)
    return found


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(3, 3, 9, 7, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_features_without_weights_are_those_of_their_extractors(seed):
    drawn = pictures(seed)
    for name, extractor in (("colours", colour_statistics), ("textures", RandomConvolutions())):
        judge = named_judge(name, CPU)
        assert short_name(judge.name) == name and judge.logits is None
        assert torch.equal(judge.features(drawn), extractor(drawn))


def test_a_callable_is_an_extractor_and_one_with_features_a_classifier(module, seed):
    drawn = pictures(seed)
    plain = named_judge("stand_in_judges:mean", CPU)
    assert plain.name == "stand_in_judges:mean" and plain.logits is None
    assert torch.equal(plain.features(drawn), drawn.mean(dim=(2, 3)))
    for name in ("stand_in_judges:classifier", "stand_in_judges:Classifier"):
        judge = named_judge(name, CPU)
        assert torch.equal(judge.features(drawn), drawn.mean(dim=(2, 3)))
        assert torch.equal(judge.logits(drawn), module.classifier(drawn))


def test_other_weights_are_another_judge(module):
    first = named_judge("stand_in_judges:classifier", CPU).name
    assert first == named_judge("stand_in_judges:classifier", CPU).name and short_name(first) == "stand_in_judges:classifier"
    with torch.no_grad():
        module.classifier.layer.bias += 1
    assert named_judge("stand_in_judges:classifier", CPU).name != first


def small_classifier(seed: int) -> LeafClassifier:
    torch.manual_seed(seed)
    return LeafClassifier(ClassifierSpec("small-judge", "convolutional", 3, 32, (8, 16), 1, 5))


def test_a_file_of_a_classifier_judges_under_the_name_it_states_wherever_it_is(tmp_path, seed):
    first, drawn = small_classifier(seed), torch.rand(2, 3, 32, 32) * 2 - 1
    judges = []
    for name, network in (("a.safetensors", first), ("b.safetensors", first), ("c.safetensors", small_classifier(seed + 1))):
        save_model(network, tmp_path / name)
        judges.append(named_judge(str(tmp_path / name), CPU))
    assert torch.equal(judges[0].logits(drawn), first(drawn)) and torch.equal(judges[0].features(drawn), first.features(drawn))
    assert judges[0].name == judges[1].name != judges[2].name and {short_name(j.name) for j in judges} == {"small-judge"}


def test_a_bundled_classifier_is_the_one_that_its_name_loads(monkeypatch, seed):
    asked = []
    monkeypatch.setattr("segue.bench.quality.judges.load_classifier", lambda name: asked.append(name) or small_classifier(seed))
    judges = [named_judge(name, CPU) for name in CLASSIFIERS]
    assert asked == list(CLASSIFIERS) and [short_name(judge.name) for judge in judges] == asked


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody", r"there is no judge 'nobody'; accepted: herbarium-classifier, .*timm/NAME"),
        ("timm/", "there is no judge 'timm/'"),
        ("a:", "there is no judge 'a:'"),
        ("no_such_module:judge", r"'no_such_module:judge' cannot be imported: ModuleNotFoundError"),
        ("stand_in_judges:other", "stand_in_judges has no other"),
        ("stand_in_judges:number", "must be callable, got int"),
    ],
)
def test_what_is_no_judge_is_refused_in_one_sentence(module, name, said):
    with pytest.raises(ValueError, match=said):
        named_judge(name, CPU)
