"""Gradient-free classifier guidance where everything is known: with exact networks, posteriors and scores in the plane."""

import pytest
import torch

from segue import GFCG, AutoGuidance, Engine
from segue.bench.mixture_study import Study, draw, scored_points
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 10_000, 20_000])
def test_of_ten_classes_swapped_labels_are_nearer_than_autoguidance(seed):
    """Class-wise Frechet distances: autoguidance > swap > swap with gain."""
    study = Study("10 classes, depth 1", 10, 1)
    engine, labels = study.engine(), study.labels(1000)

    def classifier(clean):
        return study.truth.class_probabilities(clean[:, :, 0, 0]).clamp_min(1e-30).log().float()

    def distance(rule):
        return scored_points(study, "", 0, draw(engine, rule, labels, seed)[0][-1], labels).frechet

    rules = [AutoGuidance(WEIGHT), *(GFCG(WEIGHT, classifier=classifier, form="ag-swap", gain=g) for g in (0.0, GAIN))]
    plain, swapped, gained = map(distance, rules)
    assert plain > 1.5 * swapped > 1.5 * 1.5 * gained
