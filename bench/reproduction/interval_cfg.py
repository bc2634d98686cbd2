"""CFG inside an interval of noise levels, as a rule with numbers to search: scale, upper end, and the lower one's share of it.

Source: T. Kynkaanniemi et al., Applying Guidance in a Limited Interval (arXiv 2404.07724).
"""

from dataclasses import dataclass

from ..quality.search import Axis, Level, Point, Ratio
from ..quality.tuning import OFF

NAME = "cfg in an interval"
SCALES, FACTORS = (0.35, 1.0, 2.5), (1.7, 1.3)  # distances from 1: an interval allows more than all levels do
HIGH, LOW_SHARE = Level((0.8,), (0.15, 0.1)), Level((0.3,), (0.25, 0.1))


@dataclass(frozen=True)
class IntervalCFG:
    """``cfg:scale=S,window=sigma:LOW,HIGH``; a point is (S, HIGH, LOW / HIGH), so that every point is an interval."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        return Ratio(OFF["scale"], SCALES, FACTORS), HIGH, LOW_SHARE

    def at(self, point: Point) -> str:
        """The text of the rule with these numbers."""
        scale, high, share = point
        return f"cfg:scale={scale:g},window=sigma:{round(high * share, 3):g},{high:g}"
