"""How sure a score is: Wilson's interval for a share, and Student's for a score that was found on a few disjoint sets."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev

from torch import Tensor

LEVEL = 0.95
SETS = 5
BISECTIONS = 60  # of an interval that is no longer than its upper end: more than fp64 has bits


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval of confidence."""

    value: float
    low: float
    high: float

    def apart(self, other: "Interval") -> bool:
        """Whether the two intervals have no point in common."""
        return self.low > other.high or self.high < other.low

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, got {level}")


def wilson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """The interval of a share, ``successes`` of ``trials``, two-sided.  Source: E. B. Wilson, JASA 22 (1927)."""
    _check_level(level)
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"a share needs at least one trial and no more successes than trials, got {successes} of {trials}")
    z, share = NormalDist().inv_cdf((1 + level) / 2), successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    return Interval(share, max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale)))


def interval_by_sets(score: Callable[[Tensor], float], samples: Tensor, sets: int = SETS, level: float = LEVEL) -> Interval:
    """``score(samples)`` of samples [N, ...], with the two-sided interval that ``sets`` disjoint parts of them give.

    Each part errs by ``sqrt(sets)`` times as much as the whole does, so Student's interval of the mean of the parts is as wide
    as that of the whole.  It stands around the score of the whole: a score of few samples may be biased (the Frechet distance
    is too large), and one of samples that were drawn again, by a bootstrap, is biased more.
    """
    _check_level(level)
    if sets < 2:
        raise ValueError(f"an interval needs at least two sets, got {sets}")
    whole, parts = score(samples), [score(samples[first::sets]) for first in range(sets)]
    half = student_quantile((1 + level) / 2, sets - 1) * stdev(parts) / math.sqrt(sets)
    return Interval(whole, whole - half, whole + half)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of repetitions with its two-sided Student interval; of one value that value alone."""
    _check_level(level)
    if not values:
        raise ValueError("a mean needs at least one value, got none")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Interval(mean, mean, mean)
    half = student_quantile((1 + level) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def student_quantile(probability: float, freedom: int) -> float:
    """Where Student's distribution with ``freedom`` degrees reaches ``probability`` in [1/2, 1), by bisection."""
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"a quantile is asked for at 1/2 to 1 and at least one degree, got {probability} and {freedom}")
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < probability else (low, middle)
    return high


def _student_cdf(t: float, freedom: int) -> float:
    """The distribution function for t >= 0, as a finite sum.  Source: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + inside / 2
