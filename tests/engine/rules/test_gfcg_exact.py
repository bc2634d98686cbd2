"""Gradient-free classifier guidance where everything is known: with exact networks, posteriors and scores in the plane."""

from functools import cache
from itertools import pairwise

import pytest
import torch

from segue import GFCG, AutoGuidance, Engine, Guidance
from segue.bench.mixture_study import Study, draw, scored_points
from segue.engine.rules.branch import Branch
from segue.engine.rules.drawn import RandomCondition
from segue.engine.rules.guidance import Term, Weight
from segue.training.leaf_trees import leaf_mixture
from segue.training.mixture_network import leaf_network

LEVELS = (0.95, 0.8, 0.62, 0.5, 0.31, 0.13, 0.0)
ERROR = 1e-5  # of the fp32 state of a run; the network and the posterior are fp64


@pytest.mark.parametrize("label", [0, 1])
def test_of_two_classes_the_rival_is_classifier_guidance_exactly(label):
    """``c + w (1 - p_c) (c - v_r)`` is the velocity whose score has ``w grad log p(c | x)`` more."""
    weight, batch = 1.3, 7
    mixture, engine = leaf_mixture(2, 2), Engine(leaf_network(2, 2), device="cpu")
    labels, noise = [label] * batch, torch.randn(batch, 2, 1, 1, generator=torch.Generator().manual_seed(4))
    state, largest = {}, 0.0

    def posterior(clean):
        x, sigma = state.get("x", clean), state.get("sigma", 0.5)
        both = [mixture.log_density(x[:, :, 0, 0], sigma, k) for k in (0, 1)]
        return torch.stack(both, dim=1).float()

    rule = GFCG(weight, classifier=posterior, lag=0)
    program = engine.load(engine.plan(rule, schedule=LEVELS), labels, range(batch), noise)
    for sigma, following, live in zip(LEVELS, LEVELS[1:], program.plan.live, strict=False):
        x = program.x[:, :, 0, 0].double()
        state |= {"x": program.x.clone(), "sigma": sigma}
        gradient = mixture.score(x, sigma, label) - mixture.score(x, sigma, mixture.null_label)
        largest = max(largest, float(gradient.norm(dim=1).max()))
        velocity = mixture.velocity(x, sigma, label) - weight * sigma / (1 - sigma) * gradient
        program.step(live)
        expected = x + (following - sigma) * velocity
        assert (program.x[:, :, 0, 0] - expected).abs().max() < ERROR * expected.abs().max().clamp_min(1)
    assert largest > 0.1


WEIGHT, GAIN = 1.2, 2.0
# How many times nearer each label is at least than the one before; distances of 50 points a class wander by a fifth.
NEARER = {"random": 1.0, "own": 1.5, "swapped": 2.0, "swapped, with gain": 1.2}
GEOMETRIES = {(10, 1): (0, 10_000, 20_000), (10, 2): (0,), (4, 3): (0,), (16, 1): (0,)}  # classes and depth, first seeds
SLOW = [
    pytest.param(*geometry, 100, seed, lag, marks=pytest.mark.slow)
    for geometry, seeds in GEOMETRIES.items()
    for seed in seeds
    for lag in (0, 1)
]


@cache
def distance(classes: int, depth: int, each: int, seed: int, label: str, lag: int = 0) -> float:
    """The class-wise Frechet distance of ``each`` points a class by a weak network that is given a ``label``."""
    study = Study(f"{classes} classes, depth {depth}", classes, depth)
    labels = study.labels(each * classes)

    def classifier(clean):
        return study.truth.class_probabilities(clean[:, :, 0, 0]).clamp_min(1e-30).log().float()

    def swap(gain):
        return GFCG(WEIGHT, classifier=classifier, form="ag-swap", gain=gain, lag=lag)

    rules = {
        "random": Guidance((Term(Branch(RandomCondition(), model="weak"), Weight(WEIGHT)),)),
        "own": AutoGuidance(WEIGHT),
        "swapped": swap(0.0),
        "swapped, with gain": swap(GAIN),
    }
    return scored_points(study, label, 0, draw(study.engine(), rules[label], labels, seed)[0][-1], labels).frechet


@pytest.mark.parametrize(("classes", "depth", "each", "seed", "lag"), [(6, 1, 50, 0, 0), (6, 1, 50, 0, 1), *SLOW])
def test_swapped_labels_are_nearer_than_autoguidance_and_random_ones_farther(classes, depth, each, seed, lag):
    """By distance: a random reference > autoguidance > a swap > a swap with gain."""
    found = {
        label: distance(classes, depth, each, seed, label, *([lag] if label.startswith("swapped") else [])) for label in NEARER
    }
    for farther, nearer in pairwise(NEARER):
        assert found[farther] > NEARER[nearer] * found[nearer], found
