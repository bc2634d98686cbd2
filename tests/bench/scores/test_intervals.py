"""Intervals of confidence: quantiles as tables give them, and coverage as promised."""

import math

import numpy as np
import pytest
import torch

from segue.bench.scores.intervals import Interval, interval_by_sets, student_quantile, wilson


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),  # as tables of Student's distribution print them
    [(0.975, 4, 2.776), (0.975, 1, 12.706), (0.95, 2, 2.920), (0.995, 9, 3.250), (0.8, 4, 0.941), (0.975, 30, 2.042)],
)
def test_quantiles_are_those_of_the_tables(probability, freedom, expected):
    assert student_quantile(probability, freedom) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 12])
def test_quantiles_invert_the_integral_of_the_density(freedom):
    """By the trapezoid rule over the density, from its middle to the quantile."""
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    for probability in (0.6, 0.9, 0.99):
        t = np.linspace(0, student_quantile(probability, freedom), 20_001)
        area = np.trapezoid(scale * (1 + t**2 / freedom) ** (-(freedom + 1) / 2), t)
        assert 0.5 + area == pytest.approx(probability, abs=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (940, 960), (1, 1)])
def test_wilsons_ends_solve_his_equation(successes, trials):
    """At its ends p the share lies ``z sqrt(p (1 - p) / n)`` away."""
    z, found = 1.959963984540054, wilson(successes, trials)
    assert found.value == successes / trials and 0 <= found.low <= found.value <= found.high <= 1
    for p in (found.low, found.high):
        assert abs(found.value - p) == pytest.approx(z * math.sqrt(p * (1 - p) / trials), abs=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_wilson_covers_what_it_promises(share):
    """The exact coverage, summed over all outcomes of 192 trials, is near 95 %."""
    trials, covered = 192, 0.0
    for successes in range(trials + 1):
        found = wilson(successes, trials)
        if found.low <= share <= found.high:
            covered += math.comb(trials, successes) * share**successes * (1 - share) ** (trials - successes)
    assert 0.93 <= covered <= 0.975


def test_the_interval_by_sets_covers_the_mean(seed):
    generator, hits, repetitions = torch.Generator().manual_seed(seed), 0, 400
    for _ in range(repetitions):
        found = interval_by_sets(lambda part: float(part.mean()), torch.randn(60, 1, generator=generator).exp())
        hits += found.low <= math.exp(0.5) <= found.high
    # skewed, so a little less than 95 %; five standard errors of the share
    assert 0.9 - 5 * math.sqrt(0.95 * 0.05 / repetitions) <= hits / repetitions


def test_the_sets_are_disjoint_and_make_up_the_whole():
    seen = []
    interval_by_sets(lambda part: seen.append(part.flatten()) or float(len(part)), torch.arange(13.0)[:, None])
    whole, *parts = seen
    assert torch.equal(whole, torch.arange(13.0)) and torch.equal(torch.cat(parts).sort().values, whole) and len(parts) == 5


def test_apart_means_that_no_point_is_common():
    a, b, c = Interval(1, 0, 2), Interval(3, 2, 4), Interval(4, 2.1, 5)
    assert not a.apart(b) and not b.apart(a) and a.apart(c) and c.apart(a)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: wilson(3, 2), "got 3 of 2"),
        (lambda: wilson(0, 0), "got 0 of 0"),
        (lambda: wilson(1, 2, 1.0), "lies between 0 and 1, got 1.0"),
        (lambda: student_quantile(0.3, 4), "got 0.3 and 4"),
        (lambda: interval_by_sets(lambda _: 0.0, torch.zeros(9, 1), sets=1), "at least two sets, got 1"),
    ],
)
def test_bad_input_is_one_sentence_with_the_value(call, said):
    with pytest.raises(ValueError, match=said):
        call()
