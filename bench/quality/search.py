"""A search over a few positive numbers and a noise level: a coarse grid, then steps around the best that become smaller.

Knows nothing of rules and scores: a point is judged by any function, once, and the search is the same for the same judgements.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

Point = tuple[float, ...]
Value = tuple[float, ...]  # less is better, compared in order
DIGITS = 2  # of the numbers that are tried: more would claim what no budget can tell


@dataclass(frozen=True)
class Ratio:
    """A number above ``base`` that is searched by its distance from there: a scale from 1, a weight from 0.

    ``coarse`` are the first distances; ``factors`` those by which it is then varied, one after the other, between ``least`` and
    ``most``: nearer to its base a number does nothing that a score could tell.
    """

    base: float
    coarse: tuple[float, ...]
    factors: tuple[float, ...]
    least: float = 0.02
    most: float = 20.0

    def start(self) -> tuple[float, ...]:
        return tuple(self._at(distance) for distance in self.coarse)

    def around(self, value: float, stage: int) -> tuple[float, ...]:
        """One smaller and one larger."""
        factor = self.factors[stage]
        distances = [(value - self.base) * by for by in (1 / factor, factor)]
        return tuple(self._at(distance) for distance in distances if self.least <= distance <= self.most)

    def _at(self, distance: float) -> float:
        return round(self.base + float(f"{distance:.{DIGITS}g}"), 6)


@dataclass(frozen=True)
class Level:
    """A number inside (0, 1) that begins at ``coarse`` and is varied by ``steps``, one after the other."""

    coarse: tuple[float, ...]
    steps: tuple[float, ...]

    def start(self) -> tuple[float, ...]:
        return self.coarse

    def around(self, value: float, stage: int) -> tuple[float, ...]:
        """One lower and one higher, where these lie inside."""
        step = self.steps[stage]
        return tuple(round(other, 6) for other in (value - step, value + step) if 0 < round(other, 6) < 1)


Axis = Ratio | Level


@dataclass(frozen=True)
class Found:
    """The best point, and every point that was judged, in order."""

    best: Point
    values: Mapping[Point, Value]


def search(axes: tuple[Axis, ...], stages: int, judge: Callable[[Point], Value]) -> Found:
    """The point of least value: the grid of all coarse numbers, then at each stage the neighbours along each axis.

    At the first stage a best point at an end of the grid is followed outwards; later ones take one step on each axis.  Of
    equal values the first stays.
    """
    values: dict[Point, Value] = {}

    def best_of(points: Iterator[Point], best: Point | None) -> Point | None:
        for point in points:
            if point not in values:
                values[point] = judge(point)
            if best is None or values[point] < values[best]:
                best = point
        return best

    best = best_of(product(*(axis.start() for axis in axes)), None)
    if best is None:
        raise ValueError("a search needs at least one number to try on every axis")
    for stage in range(stages):
        for place, axis in enumerate(axes):
            before = None
            while best != before:  # moves on while it helps, outwards too
                before = best
                best = best_of(_moved(best, place, axis.around(best[place], stage)), best)
                if stage:
                    break
    return Found(best, values)


def _moved(point: Point, place: int, numbers: tuple[float, ...]) -> Iterator[Point]:
    for number in numbers:
        yield (*point[:place], number, *point[place + 1 :])
