"""Scores of single samples and their neighbours: inception, precision and recall, accuracy, effective scale."""

import math

import pytest
import torch
from tiny_models import tiny_sit

from segue import CFG, SGG, AutoGuidance, Engine, SkipLayer, Window
from segue.bench.scores.accuracy import Confusion
from segue.bench.scores.effective_scale import effective_scale, effective_scales
from segue.bench.scores.inception import inception_score, inception_score_by_splits
from segue.bench.scores.intervals import wilson
from segue.bench.scores.neighbours import ROWS_AT_ONCE, neighbours


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_an_inception_score_is_the_number_of_classes_at_best_and_one_at_worst():
    sure = 1e3 * torch.eye(7, dtype=torch.float64).repeat(3, 1)
    assert inception_score(sure) == pytest.approx(7)
    assert inception_score(torch.ones(5, 7)) == pytest.approx(1)
    assert inception_score(sure[:1].repeat(9, 1)) == pytest.approx(1)  # sure, and always of the same class


def test_an_inception_score_is_its_definition(seed):
    logits = normal(seed, 63, 5)
    p = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    divergences = [
        float(sum(a * math.log(a / m) for a, m in zip(row.tolist(), p.mean(dim=0).tolist(), strict=True))) for row in p
    ]
    assert inception_score(logits) == pytest.approx(math.exp(sum(divergences) / 63), rel=1e-10)


@pytest.mark.filterwarnings("ignore:std", "ignore:Metric")  # of a single split; it keeps what it was given
def test_an_inception_score_is_that_of_torchmetrics(seed):
    module = pytest.importorskip("torchmetrics.image.inception")
    logits = normal(seed, 60, 12)

    class Passed(torch.nn.Module):
        def forward(self, pictures):
            return pictures.flatten(1).double()

    metric = module.InceptionScore(feature=Passed(), splits=1).set_dtype(torch.float64)
    metric.update(logits.view(60, 3, 2, 2))
    assert inception_score(logits) == pytest.approx(float(metric.compute()[0]), rel=1e-9)


def test_splits_cover_every_sample_once(seed):
    logits = normal(seed, 50, 4)
    mean, deviation = inception_score_by_splits(logits, splits=5, seed=1)
    assert 1 <= mean <= 4 and deviation > 0
    with pytest.raises(ValueError, match="at least 10 samples, got 9"):
        inception_score_by_splits(logits[:9])


def naive_neighbours(drawn, real, k):
    """By the definitions, sample by sample."""

    def radius(of, i):
        return sorted(float((of[i] - of[j]).norm()) for j in range(len(of)) if j != i)[k - 1]

    def inside(points, balls, i):
        """How many balls around ``balls`` hold point i."""
        return sum(float((points[i] - balls[j]).norm()) <= radii[j] for j in range(len(balls)))

    radii = [radius(real, j) for j in range(len(real))]
    counts = [inside(drawn, real, i) for i in range(len(drawn))]
    coverage = [any(float((x - real[j]).norm()) <= radii[j] for x in drawn) for j in range(len(real))]
    radii = [radius(drawn, j) for j in range(len(drawn))]
    reached = [inside(real, drawn, i) > 0 for i in range(len(real))]
    mean = lambda values: sum(values) / len(values)
    return mean([c > 0 for c in counts]), mean(reached), mean(counts) / k, mean(coverage)


@pytest.mark.parametrize(("k", "shift"), [(1, 0.0), (3, 1.0), (5, 0.3)])
def test_neighbour_scores_are_their_definitions(k, shift, seed):
    drawn, real = 0.7 * normal(seed, 37, 3) + shift, normal(seed + 1, 29, 3)
    found = neighbours(drawn, real, k)
    expected = naive_neighbours(drawn, real, k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, rel=1e-12)


def test_known_cases_of_neighbours(seed):
    real = normal(seed, 50, 2)
    same = neighbours(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = neighbours(real + 100, real)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    collapsed = neighbours(real[:1].repeat(20, 1), real)
    assert collapsed.precision == 1 and collapsed.recall == pytest.approx(1 / 50)  # balls of radius 0 hold their own point


def test_intervals_of_neighbours_are_of_the_samples_they_count(seed):
    drawn, real = 0.7 * normal(seed, 40, 3), normal(seed + 1, 60, 3)
    found, intervals = neighbours(drawn, real), neighbours(drawn, real).intervals()
    assert intervals["precision"] == wilson(round(40 * found.precision), 40)
    assert intervals["recall"] == wilson(round(60 * found.recall), 60)
    assert intervals["coverage"] == wilson(round(60 * found.coverage), 60)
    assert intervals["density"].value == found.density and intervals["density"].low < found.density


def test_pieces_of_the_distances_join(seed):
    """More real samples than rows at once, in one dimension: those beyond the first piece count as the others do."""
    real = torch.arange(float(ROWS_AT_ONCE + 63), dtype=torch.float64)[:, None]
    found = neighbours(real[-40:] + 0.25, real, k=1)
    assert found.precision == 1 and found.coverage == pytest.approx(40 / len(real))


def test_confusion_counts_and_superclasses():
    found = torch.tensor([0, 1, 1, 3, 2, 2, 0])
    asked = torch.tensor([0, 0, 1, 3, 3, 2, 2])
    confusion = Confusion.of(torch.nn.functional.one_hot(found, 4).float(), asked)
    assert confusion.counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]]
    assert (confusion.right, confusion.total) == (4, 7)
    assert confusion.accuracy().value == 4 / 7
    genera = confusion.by_superclass((0, 0, 1, 1))
    assert genera.counts.tolist() == [[3, 0], [1, 3]]
    assert confusion.most_confused(2) == [(0, 1, 1), (2, 0, 1)] and len(confusion.most_confused(9)) == 3


def test_the_effective_scale_of_cfg_is_its_scale(seed):
    c, u = normal(seed, 5, 3, 4, 4), normal(seed + 1, 5, 3, 4, 4)
    assert torch.allclose(effective_scale(c + 2.5 * (c - u), c, u), torch.full((5,), 3.5, dtype=torch.float64))
    across = normal(seed + 2, 5, 3, 4, 4)
    across -= (across * (c - u)).sum(dim=(1, 2, 3), keepdim=True) / (c - u).square().sum(dim=(1, 2, 3), keepdim=True) * (c - u)
    assert torch.allclose(effective_scale(c + across, c, u), torch.ones(5, dtype=torch.float64))  # moves nothing along c - u
    # other predictions are affine in the velocity: noise is x + (1 - s) v, the clean estimate x - s v
    x, guided = normal(seed + 3, 5, 3, 4, 4), c + 0.5 * across
    plain = effective_scale(guided, c, u)
    assert torch.allclose(effective_scale(*(x - 0.3 * v for v in (guided, c, u))), plain)
    assert effective_scale(c, c, c).isnan().all()


def test_the_effective_scales_of_a_run():
    """A scale that varies with sigma is found at every call; a rule that adds to CFG differs; none is 1."""
    weak = tiny_sit(1, depth=2, exits=(1,))
    engine = Engine(tiny_sit(0), {"weak": weak}, device="cpu")
    options = {"steps": 6, "seeds": [3, 4], "schedule": "shift"}
    # c - u is a hundredth of the velocity that fp32 holds to 1e-7
    plan, scales = effective_scales(engine, CFG(lambda sigma: 1 + sigma), [0, 5], **options)
    expected = torch.from_numpy(1 + plan.sigmas)[:, None].expand(-1, 2)
    assert scales.shape == (6, 2) and torch.allclose(scales, expected, atol=1e-3)
    _, none = effective_scales(engine, None, [0, 5], **options)
    assert torch.allclose(none, torch.ones(6, 2, dtype=torch.float64), atol=1e-3)
    plan, windowed = effective_scales(engine, SGG(CFG(3.0), SkipLayer(1.0, (1, 3)), 0.6), [0, 5], **options)
    strong = torch.from_numpy(plan.sigmas > 0.6)
    assert torch.allclose(windowed[strong], torch.full((int(strong.sum()), 2), 3.0, dtype=torch.float64), atol=1e-3)
    assert ((windowed[~strong] - 1).abs() > 1e-3).all()
    assert (
        (effective_scales(engine, AutoGuidance(1.0, window=Window.steps(1, 6)), [0, 5], **options)[1] - 1).abs() > 1e-3
    ).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: neighbours(torch.eye(4), torch.eye(4), k=4), "at least 5 samples, got 4"),
        (lambda: neighbours(torch.eye(4), torch.eye(4), k=0), "positive integer, got 0"),
        (lambda: Confusion.of(torch.eye(3), torch.tensor([0, 1, 3])), r"lie in \[0, 2\], got 0 to 3"),
        (lambda: Confusion.of(torch.eye(3), torch.tensor([0, 1])), r"3 integers, got torch.int64 of shape \[2\]"),
        (lambda: Confusion.of(torch.eye(3), torch.tensor([0, 1, 2])).by_superclass((0, 1)), "each of 3 classes, got 2"),
        (lambda: effective_scale(torch.eye(3), torch.eye(3), torch.eye(2)), "must have one shape"),
    ],
)
def test_bad_input_is_one_sentence_with_the_value(call, said):
    with pytest.raises(ValueError, match=said):
        call()
