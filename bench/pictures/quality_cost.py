"""Quality against cost: rules as points, named at their own numbers, the Pareto front among these, and real samples.

Networks made of the model, most with guidance in their weights, all cost what unguided sampling costs: they have a panel of
their own below, a line each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segue.engine.images import save_png
from segue.engine.rules.presets import default_rules, parse_rule
from segue.models.spec import ModelSpec

from ..figures import new_figure, picture_of
from ..quality.interval import interval_of
from ..quality.judges import short_name
from ..quality.origins import DISTILLED
from ..quality.rows import REAL, metric_by
from ..quality.tuning import UNGUIDED
from ..scores.intervals import Interval
from ..scores.units import ACCURACY, FRECHET
from ..tables import GUIDED
from .measured import Measured

GREY, GRID, INK = "#777d87", "#e4e6e9", "#30343b"
MADE = "#8a3b8f"  # networks made of the model
COLOURS = {"none": GREY, "cfg": "#2f6fb5", "sgg": "#14532d", "sgg-exit": "#14532d"}  # of rules by name
WEAK_COLOUR = "#c07f12"  # of those that a weak branch guides
SIDES = {ACCURACY: ("accuracy \u2191", 1), FRECHET: ("Frechet distance \u2193", -1)}  # which way is better, and its sign
DIAMONDS = "\nDiamonds: networks made of the model, the first seed of each, sampled unguided; dashed: the model itself."
FILLED = (
    "Filled: on the front of the named rules, none of which is better there and costs no more.  "
    "Small: the same rules by other numbers, and others."
)
VIEW = 0.7  # of what the named rules span is seen above and below them; small dots may lie further out
SIZE, DPI = (10.2, 4.7), 150
LINE = 0.24  # inches of a network made of the model
# where a name may stand, in points from its dot: beside it, above, below, and further away
DIRECTIONS = ((1, 0.6), (1, -0.6), (-1, 0.6), (-1, -0.6), (0, 1), (0, -1), (0.5, 1.4), (-0.5, 1.4), (0.5, -1.4), (-0.5, -1.4))
BESIDE, *FURTHER = ([(x * far, y * far) for x, y in DIRECTIONS] for far in (9, 16, 26, 40, 60))
PLACES = [place for ring in (BESIDE, *FURTHER) for place in ring]


@dataclass(frozen=True)
class Point:
    """A rule by the name that it is shown by, its cost relative to unguided sampling, and a score with its interval."""

    name: str
    rule: str
    cost: float
    score: Interval


def points_of(measured: Measured, score: str, names: Mapping[str, str]) -> list[Point]:
    """Every rule that has the score; ``names`` of the texts of rules."""
    found = [(rule, measured.interval(rule, score)) for rule in measured.rules]
    return [Point(names.get(rule, rule), rule, measured.cost(rule), own) for rule, own in found if own is not None]


def made_points(measured: Measured, score: str, names: Mapping[str, str] | None = None) -> list[Point]:
    """Every network that was made of the model and has the score, sampled unguided."""
    found, metric = [], metric_by(score, measured.judge)
    for origin, rows in measured.made:
        if metric in rows and GUIDED in rows:
            name = (names or {}).get(origin.name, origin.name) if origin.kind == DISTILLED else origin.name
            shown = f"{origin.kind}, {name}"
            found.append(Point(shown, UNGUIDED, rows[GUIDED].value, interval_of(rows[metric])))
    return found


def names_of(spec: ModelSpec) -> dict[str, str]:
    """What rules by the numbers of a model are called, by their text."""
    return {UNGUIDED: "unguided"} | {parse_rule(name, spec).text: name for name in default_rules(spec)}


def front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The points that no other one beats in one of the two and equals or beats in the other, by rising cost."""
    order = sorted(range(len(costs)), key=lambda index: (costs[index], losses[index]))
    kept: list[int] = []
    for index in order:
        last = kept[-1] if kept else None
        if last is None or losses[index] < losses[last] or (costs[index], losses[index]) == (costs[last], losses[last]):
            kept.append(index)
    return kept


def draw_quality_cost(path: Path, seen: Sequence[Measured], spec: ModelSpec) -> None:
    """A panel for every score of every judge into a PNG at ``path``; ``ValueError`` without matplotlib."""
    names = names_of(spec)
    panels = [(measured, score) for measured in seen for score in SIDES if points_of(measured, score, names)]
    columns, most = min(len(panels), len(SIDES)), max(len(measured.made) for measured in seen)
    lines, below = -(-len(panels) // columns), LINE * (most + 2) if most else 0.0
    with new_figure(SIZE[0], (SIZE[1] + below) * lines, DPI) as figure:
        heights = [SIZE[1], below] if most else [SIZE[1]]
        axes = figure.subplots(lines * len(heights), columns, squeeze=False, height_ratios=heights * lines)
        for index, (measured, score) in enumerate(panels):
            line, column = divmod(index, columns)
            upper = axes[line * len(heights), column]
            draw_panel(upper, measured, score, points_of(measured, score, names))
            if most:
                draw_made(axes[line * 2 + 1, column], measured, score, made_points(measured, score, names))
                named = column > 0 and panels[index - 1][0] is measured  # beside, by the same judge
                axes[line * 2 + 1, column].tick_params(labelleft=not named)
        for index in range(len(panels), lines * columns):
            for row in range(len(heights)):
                axes[index // columns * len(heights) + row, index % columns].set_axis_off()
        told = DIAMONDS if any(measured.made for measured in seen) else ""
        said = f"{spec.name}: {seen[0].drawn}; intervals at 95 %.\n{FILLED}{told}"
        figure.supxlabel(said, fontsize=8.5, color=GREY)
        picture = picture_of(figure)
    record = {"model": seen[0].case.networks, "rules": seen[0].rules, "judges": [measured.judge for measured in seen]}
    save_png(picture, path, f"segue bench quality, {spec.name}", record)


def draw_panel(axes: Any, measured: Measured, score: str, every: Sequence[Point]) -> list[Any]:
    """One score by one judge; returns the names that were written, as texts of matplotlib.

    Rules with a name have an interval, and the front is theirs; others are small dots, unless no rule has a name.  Dots far
    from the named rules are not shown, and counted.
    """
    title, sign = SIDES[score]
    points = [point for point in every if point.name != point.rule] or list(every)
    costs, values = [point.cost for point in points], [point.score.value for point in points]
    best = front(costs, [-sign * value for value in values])
    _decorate(axes, f"{title}  by {short_name(measured.judge)}", "FLOPs relative to unguided sampling")
    real = measured.interval(REAL, score)
    if real is not None:
        axes.axhline(real.value, color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        axes.annotate("real leaves", (1, real.value), (-2, 3), ("axes fraction", "data"), "offset points", ha="right",
                      fontsize=9, color=GREY)  # fmt: skip
    axes.step([costs[i] for i in best], [values[i] for i in best], where="post", color="#9fb7a6", linewidth=2.2, zorder=2)
    small = [point for point in every if point not in points]
    for point in small:
        axes.plot(point.cost, point.score.value, "o", markersize=4, color=_colour(point.rule), alpha=0.4, zorder=2)
    for index, point in enumerate(points):
        colour = _colour(point.rule)
        axes.errorbar(point.cost, point.score.value, _bars(point.score), color=colour, capsize=3, linewidth=1.3, zorder=3)
        face = colour if index in best else "white"
        axes.plot(point.cost, point.score.value, "o", markersize=8, color=colour, markerfacecolor=face, zorder=4)
    axes.margins(x=0.16)
    _look_at(axes, points, small, [] if real is None else [real.value])
    return _write_names(axes, points, small)


def _look_at(axes: Any, points: Sequence[Point], small: Sequence[Point], lines: Sequence[float]) -> None:
    """Show all ``points``, what lies around them and ``lines``, and say how many of the ``small`` ones lie outside."""
    ends = [end for point in points for end in (point.score.low, point.score.high)]
    margin = VIEW * (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - margin, max(ends) + margin
    low, high = min([low, *(line - margin / 4 for line in lines)]), max([high, *(line + margin / 4 for line in lines)])
    axes.set_ylim(low, high)
    outside = sum(not low <= point.score.value <= high for point in small)
    if outside:
        said = f"{outside} small dot{'s lie' if outside > 1 else ' lies'} outside"
        axes.annotate(said, (1, 0), (-2, 3), "axes fraction", "offset points", ha="right", va="bottom", fontsize=8, color=GREY)


def draw_made(axes: Any, measured: Measured, score: str, made: Sequence[Point]) -> None:
    """Networks made of the model by one score, a line each, and the model itself, unguided, as a dashed line."""
    unguided = measured.interval(UNGUIDED, score)
    if unguided is not None:
        axes.axvline(unguided.value, color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
    for place, point in enumerate(made):
        axes.errorbar(point.score.value, place, xerr=_bars(point.score), color=MADE, capsize=3, linewidth=1.3, zorder=3)
        axes.plot(point.score.value, place, "D", markersize=7, color=MADE, markerfacecolor="white", zorder=4)
    _decorate(axes, "", f"networks made of it, all at 1.00x: {SIDES[score][0]}")
    axes.set_yticks(range(len(made)), [point.name for point in made])
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.12)


def _bars(interval: Interval) -> tuple[list[float], list[float]]:
    """How far it reaches below and above its value."""
    return [max(0.0, interval.value - interval.low)], [max(0.0, interval.high - interval.value)]


def _decorate(axes: Any, title: str, along: str) -> None:
    axes.set_title(title, fontsize=10.5, fontweight="bold", color=INK, loc="left", pad=10)
    axes.set_xlabel(along, fontsize=9.5, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK)


def _colour(rule: str) -> str:
    return COLOURS.get(rule.partition(":")[0], WEAK_COLOUR)


def _write_names(axes: Any, points: Sequence[Point], small: Sequence[Point]) -> list[Any]:
    """Each name at the first of its places that is free of dots, intervals and other names, or the least covered one.

    A thin line leads from a name further away to its dot, as another one may be nearer.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # the places are in pixels of the final layout
    taken = [_box(axes, point.cost, (point.score.low, point.score.high), 7) for point in points]
    taken += [_box(axes, point.cost, (point.score.value,), 3) for point in small]
    inside, texts = axes.get_window_extent(), []
    for point in points:
        colour = _colour(point.rule)
        text = axes.annotate(point.name, (point.cost, point.score.value), PLACES[0], textcoords="offset points", fontsize=9.5,
                             color=colour, zorder=5, va="center")  # fmt: skip
        covered = []
        for place in PLACES:
            _move(text, place)
            box = text.get_window_extent()
            outside = _area(box) - _overlap(box, inside)
            covered.append(sum(_overlap(box, other) for other in taken) + outside)
        place = PLACES[int(np.argmin(np.round(covered, 3)))]
        _move(text, place)
        if place not in BESIDE:
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 5}
            axes.annotate("", (point.cost, point.score.value), place, textcoords="offset points", arrowprops=line, zorder=3)
        taken.append(text.get_window_extent())
        texts.append(text)
    return texts


def _move(text: Any, place: tuple[float, float]) -> None:
    text.set_position(place)
    text.set_horizontalalignment("left" if place[0] > 0 else "right" if place[0] < 0 else "center")


def _box(axes: Any, cost: float, values: Sequence[float], pixels: float) -> Any:
    """Where a dot and its interval are, in pixels, ``pixels`` around it."""
    from matplotlib.transforms import Bbox

    ends = [axes.transData.transform((cost, value)) for value in values]
    return Bbox([np.min(ends, axis=0) - pixels, np.max(ends, axis=0) + pixels])


def _overlap(first: Any, second: Any) -> float:
    from matplotlib.transforms import Bbox

    common = Bbox.intersection(first, second)
    return 0.0 if common is None else _area(common)


def _area(box: Any) -> float:
    return float(box.width * box.height)
