"""What comes to servers under load: a Poisson process, mixed as it should be, the same for everyone who asks."""

from collections import Counter

import numpy as np
import pytest

from segue.bench.load.arrivals import AT_ONCE, SHARES, STEPS, Kind, Mix
from segue.bench.load.settings import LoadSettings

MANY = 8000


def test_gaps_are_those_of_a_poisson_process():
    """Exponential: mean and standard deviation are 1 / rate, and a share 1/e is longer; to 4 standard errors."""
    due = np.array([arrival.due for arrival in Mix().arrivals(MANY, 5.0, seed=3)])
    gaps = np.diff(due, prepend=0.0)
    error = 4 / MANY**0.5
    assert gaps.min() >= 0
    assert abs(gaps.mean() * 5.0 - 1) < error
    assert abs(gaps.std() * 5.0 - 1) < 2 * error  # the fourth moment of an exponential is 9
    assert abs((gaps > 0.2).mean() - np.exp(-1)) < error / 2


def test_rules_and_steps_have_their_shares_and_do_not_depend_on_each_other():
    count = Counter(arrival.kind for arrival in Mix().arrivals(MANY, 1.0, seed=4))
    assert set(count) == {Kind(rule, steps) for rule in SHARES for steps in STEPS} == set(Mix().kinds)
    for kind, found in count.items():
        share = SHARES[kind.rule] / len(STEPS)
        assert abs(found / MANY - share) < 4 * (share * (1 - share) / MANY) ** 0.5


def test_the_same_requests_come_at_every_rate():
    slow, fast, at_once = (Mix().arrivals(50, rate, seed=7) for rate in (0.5, 2.0, AT_ONCE))
    assert slow == Mix().arrivals(50, 0.5, seed=7) != Mix().arrivals(50, 0.5, seed=8)
    for one, other, third in zip(slow, fast, at_once, strict=True):
        assert one.kind == other.kind == third.kind and one.seed == other.seed == third.seed
        assert one.due == pytest.approx(4 * other.due) and third.due == 0
    assert [arrival.seed for arrival in slow] == list(range(50))


def test_a_rule_that_a_model_lacks_leaves_its_share_to_the_others():
    mix = Mix.of(("none", "cfg", "sgg"))
    assert dict(mix.shares) == pytest.approx({"none": 1 / 3, "cfg": 1 / 3, "sgg": 1 / 3})
    assert str(Mix()) == "none 30%, cfg 30%, sgg 30%, exit 10%; 8, 20, 28, 50 steps"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"requests": 0}, "requests must be at least 1, got 0"),
        ({"slots": 2.5}, "slots must be a whole number"),
        ({"rounds": -1}, "rounds must be at least 1, got -1"),
        ({"rate": 1.0}, "rate must be a share of saturation between 0 and 1, got 1"),
        ({"rate": float("nan")}, "rate must be a share of saturation"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_refused_with_the_value(options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        LoadSettings(**options)
