"""A judge's scores are those of the functions that define them, of the whole set; their order and names are known before."""

import pytest
import torch

from segue.bench.scores.accuracy import Confusion
from segue.bench.scores.extractors import RandomConvolutions, colour_statistics, features_of
from segue.bench.scores.frechet import Moments, frechet_distance
from segue.bench.scores.inception import inception_score
from segue.bench.scores.judge import Judge, distance_scores
from segue.bench.scores.kernel_distance import kernel_distance
from segue.bench.scores.neighbours import neighbours
from segue.bench.scores.units import UNITS

PARENTS = (0, 0, 1)


def logits(pictures: torch.Tensor) -> torch.Tensor:
    """Three classes: which channel is the brightest."""
    return 5 * pictures.mean(dim=(2, 3))


def pictures(seed: int, count: int, tint: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of three classes, each with its channel brighter by ``tint``."""
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 3
    noise = torch.rand(count, 3, 8, 8, generator=generator) - 0.5
    return noise + tint * torch.nn.functional.one_hot(labels, 3)[:, :, None, None], labels


@pytest.mark.parametrize("parents", [(), PARENTS])
def test_scores_are_those_of_the_whole(seed, parents):
    judge = Judge("stand-in", RandomConvolutions(features=16), logits)
    (drawn, labels), (real, _) = pictures(seed, 60, 0.03), pictures(seed + 1, 90, 0.2)
    reference = features_of(real, judge.features)
    scores = judge.scores(drawn, labels, reference, parents)
    assert tuple(scores) == judge.metrics(parents) and set(scores) <= set(UNITS)
    features = features_of(drawn, judge.features)
    confusion = Confusion.of(logits(drawn), labels)
    near = neighbours(features, reference[:60])
    expected = {
        "accuracy": confusion.right / 60,
        "inception score": inception_score(logits(drawn)),
        "Frechet distance per feature": frechet_distance(Moments.of(features), Moments.of(reference)) / 16,
        "kernel distance": kernel_distance(features, reference[:60]),
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
    }
    if parents:
        expected["superclass accuracy"] = confusion.by_superclass(parents).right / 60
    assert {name: interval.value for name, interval in scores.items()} == pytest.approx(expected)
    assert all(interval.low <= interval.value <= interval.high for interval in scores.values())


def test_better_samples_score_better(seed):
    """Those of the real tint against paler ones, by both distances and by the classifier, with intervals apart."""
    judge = Judge("stand-in", colour_statistics, logits)
    reference = features_of(pictures(seed + 9, 300, 0.2)[0], judge.features)
    good, pale = (judge.scores(*pictures(seed + i, 150, tint), reference) for i, tint in enumerate((0.2, 0.02)))
    for name in ("Frechet distance per feature", "kernel distance"):
        assert good[name].value < pale[name].value and good[name].apart(pale[name])
    assert good["accuracy"].value > pale["accuracy"].value and good["accuracy"].apart(pale["accuracy"])


def test_too_few_real_samples_are_refused():
    with pytest.raises(ValueError, match="6 samples need as many real ones beside them, got 5"):
        distance_scores(torch.eye(6), torch.eye(6)[:5])
