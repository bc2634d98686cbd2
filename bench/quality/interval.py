"""Rows of the suite ``quality``: their spread is an interval of confidence, and this gives it at any level.

``p20`` and ``p80`` of such a row are the ends of the interval at 60 %, not percentiles of repetitions: ``n`` counts samples.
"""

import math

from ..rows import Row
from ..scores.intervals import LEVEL, SETS, Interval, student_quantile, wilson
from ..scores.units import LEAST, SHARE

SUITE, SPREAD_LEVEL = "quality", 0.6
BY = " by "  # between the score and the judge in the name of a metric


def standard_error(row: Row) -> float:
    """The standard error of a row's value, a score that was found on disjoint sets."""
    return max(row.p80 - row.value, row.value - row.p20) / student_quantile((1 + SPREAD_LEVEL) / 2, SETS - 1)


def student_interval(row: Row, least: float = -math.inf, level: float = LEVEL) -> Interval:
    """Student's interval of a row's value, found on disjoint sets: as wide on both sides, but it ends at ``least``."""
    half = standard_error(row) * student_quantile((1 + level) / 2, SETS - 1)
    return Interval(row.value, min(row.value, max(least, row.value - half)), row.value + half)


def interval_of(row: Row, level: float = LEVEL) -> Interval:
    """The interval of a row's value: Wilson's for a share, Student's for other scores, down to the least that one can be."""
    if row.suite != SUITE:
        raise ValueError(f"a row of the suite {SUITE} is needed, got one of {row.suite}")
    if row.unit == SHARE:
        return wilson(round(row.value * row.n), row.n, level)
    return student_interval(row, LEAST.get(row.metric.split(BY)[0], -math.inf), level)
