"""Interleaving, medians and spreads, with a timer that is not a clock."""

import numpy as np
import pytest

from segue.bench.timing import MIN_ROUNDS, Statistic, interleave, paired_ratio


def noisy_timer(seed: int, seconds: dict[str, float], drift: float = 0.0):
    """Seconds by variant with 5 % noise, and a machine that becomes slower by ``drift`` with every measurement."""
    generator, count = np.random.default_rng(seed), [0]

    def timer(function) -> float:
        count[0] += 1
        return seconds[function()] * generator.lognormal(0.0, 0.05) * (1 + drift * count[0])

    return timer


def test_variants_take_turns_in_being_first_and_warm_up_is_not_counted():
    order: list[str] = []

    def variant(name):
        return lambda: order.append(name)

    def timer(function) -> float:
        function()
        return float(len(order))

    seconds = interleave({"a": variant("a"), "b": variant("b")}, timer, repetitions=3, warm_up=2)
    assert order == ["a", "b"] * 2 + ["a", "b", "b", "a", "a", "b"]
    assert seconds["a"].tolist() == [5.0, 8.0, 9.0]
    assert seconds["b"].tolist() == [6.0, 7.0, 10.0]


@pytest.mark.parametrize(("limit", "rounds"), [(1000.0, 9), (57.0, 5), (58.0, 5), (60.0, 5), (0.5, MIN_ROUNDS)])
def test_rounds_stop_before_the_limit_but_never_below_the_least(limit, rounds):
    """A round of both variants takes 9.5 seconds, and so does the warm-up."""
    takes = {"a": 3.0, "b": 6.5}
    seconds = interleave({name: lambda n=name: n for name in takes}, lambda f: takes[f()], 9, limit_s=limit)
    assert len(seconds["a"]) == len(seconds["b"]) == rounds


def test_two_runs_of_a_case_agree_within_the_printed_spread():
    variants = {name: lambda n=name: n for name in ("base", "guided")}
    takes = {"base": 2.0, "guided": 3.5}
    runs = [interleave(variants, noisy_timer(seed, takes), 15) for seed in (1, 2)]
    for name in variants:
        first, second = (Statistic.of(run[name]) for run in runs)
        assert first.p20 <= second.p80
        assert second.p20 <= first.p80
        assert first.p20 <= takes[name] <= first.p80


def test_ratios_inside_rounds_survive_a_machine_that_slows_down():
    """The last round runs at half the speed of the first; the ratio does not notice."""
    variants = {name: lambda n=name: n for name in ("base", "guided")}
    seconds = interleave(variants, noisy_timer(3, {"base": 2.0, "guided": 3.5}, drift=0.05), 15)
    assert seconds["base"][-1] > 2 * seconds["base"][0]
    ratio = paired_ratio(seconds["guided"], seconds["base"])
    assert ratio.median == pytest.approx(1.75, rel=0.06)


def test_a_statistic_is_the_median_and_its_percentiles():
    values = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    statistic = Statistic.of(values)
    assert (statistic.median, statistic.p20, statistic.p80, statistic.n) == (3.5, 2.0, 5.0, 6)
    inverse = statistic.map(lambda value: 10 / value)
    assert (inverse.p20, inverse.p80) == (2.0, 5.0)


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_a_statistic_of_nothing_or_of_no_number_is_refused(samples):
    with pytest.raises(ValueError, match="finite samples"):
        Statistic.of(np.array(samples))


def test_an_empty_case_and_no_repetitions_are_refused():
    with pytest.raises(ValueError, match="at least one variant"):
        interleave({}, lambda f: 1.0, 3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        interleave({"a": lambda: None}, lambda f: 1.0, 0)
