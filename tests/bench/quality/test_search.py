"""The search finds the least of functions whose least is known, asks about no point twice, and is the same every time."""

import math

import pytest

from segue.bench.quality.search import Level, Ratio, search

SCALE = Ratio(1.0, (0.1, 0.35, 1.2), (1.7, 1.3))
WEIGHT = Ratio(0.0, (0.1, 0.35, 1.2), (1.7, 1.3))
SWITCH = Level((0.5,), (0.2, 0.1))


def bowl(*centre: float):
    """Least at the centre: squared distances, of logarithms where a number is positive."""

    def value(point):
        scale, weight, switch = point
        distances = (math.log((scale - 1) / centre[0]), math.log(weight / centre[1]), 2 * (switch - centre[2]))
        return (0.0, sum(d * d for d in distances))

    return value


@pytest.mark.parametrize("centre", [(0.5, 0.1, 0.5), (1.5, 0.05, 0.3), (0.2, 3.0, 0.8), (6.0, 0.3, 0.62)])
def test_the_best_is_within_a_step_of_the_least(centre):
    scale, weight, switch = search((SCALE, WEIGHT, SWITCH), 2, bowl(*centre)).best
    assert abs(math.log((scale - 1) / centre[0])) < math.log(1.7) and abs(math.log(weight / centre[1])) < math.log(1.7)
    assert abs(switch - centre[2]) <= 0.1 + 1e-9


def test_no_point_is_judged_twice_and_the_search_is_the_same_again():
    asked = []

    def judged(point):
        asked.append(point)
        return bowl(0.6, 0.3, 0.4)(point)

    first = search((SCALE, WEIGHT, SWITCH), 2, judged)
    assert len(asked) == len(set(asked)) == len(first.values) and first.values[first.best] == min(first.values.values())
    again = search((SCALE, WEIGHT, SWITCH), 2, judged)
    assert again == first and asked[: len(first.values)] == asked[len(first.values) :]


def test_what_does_nothing_ends_near_off_and_what_grows_for_ever_at_its_end():
    falling, rising = (search((SCALE,), 2, lambda point, way=way: (way * point[0],)).best[0] for way in (1, -1))
    assert 1.02 <= falling < 1.035 and 1 + 20 / 1.3 < rising <= 21


def test_values_are_compared_in_order_and_the_first_of_equals_stays():
    best = search((WEIGHT,), 2, lambda point: (max(0.0, 0.3 - point[0]), point[0])).best[0]  # the first must be zero
    assert 0.3 <= best < 0.3 * 1.3
    assert search((WEIGHT,), 2, lambda point: (0.0,)).best == (0.1,)


def test_numbers_have_two_digits():
    values = search((SCALE, WEIGHT), 2, lambda point: bowl(0.5, 0.1, 0.5)((*point, 0.5))).values
    for scale, weight in values:
        assert float(f"{scale - 1:.2g}") == pytest.approx(scale - 1, abs=1e-9) and float(f"{weight:.2g}") == weight


def test_nothing_to_try_is_refused():
    with pytest.raises(ValueError, match="at least one number"):
        search((Level((), (0.1,)),), 1, lambda point: (0.0,))
