"""Estimates of a case from its arithmetic, with seconds that a test says."""

import pytest

from segue.bench.pace import ROUNDS, SHARE, Pace


def test_where_nothing_is_known_a_case_may_start():
    assert Pace().estimate(1e15) == 0.0
    pace = Pace()
    pace.record(1e12, 10.0)
    assert pace.estimate(0.0) == 0.0  # a case that does not say its arithmetic


def test_on_a_processor_time_grows_with_the_arithmetic_of_the_next_smaller_case():
    pace = Pace()
    pace.record(1e12, 10.0)
    pace.record(4e12, 44.0)
    assert pace.estimate(2e12) == pytest.approx(20.0)
    assert pace.estimate(8e12) == pytest.approx(88.0)
    assert pace.estimate(0.5e12) == pytest.approx(5.0)


def test_on_a_card_set_up_is_that_of_a_smaller_case_and_arithmetic_that_of_the_ceiling():
    """A small model waits for launches: scaled by its arithmetic it would forbid every large one."""
    pace = Pace(lambda: 800e12)
    assert pace.estimate(3200e12) == pytest.approx(ROUNDS * 8.0)
    pace.record(70e12, 12.0)
    assert pace.estimate(3270e12) == pytest.approx(12.0 + ROUNDS * 3200 / (SHARE * 800))
    assert pace.estimate(35e12) == 12.0  # a smaller one takes no longer


def test_the_longest_case_does_not_forbid_a_short_one():
    pace = Pace(lambda: 800e12)
    pace.record(70e12, 3.0)
    pace.record(5000e12, 90.0)
    assert pace.estimate(100e12) < 4.0
