"""A picture of accuracy and Frechet distance over the switch of segmented guidance, with intervals, as every judge sees it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segue.engine.images import save_png

from ..figures import new_figure, picture_of
from ..pictures.quality_cost import GREY, GRID, INK, SIDES
from ..quality.judges import short_name
from ..quality.rows import split_metric
from ..scores.units import ACCURACY
from .inference_page import switch_of
from .scored_rules import ScoredRules

COLOUR, LINES = "#14532d", {"none": "#777d87", "cfg": "#2f6fb5", "slg": "#c07f12"}
DPI = 130


def draw_switch(path: Path, scored: ScoredRules, switched: Sequence[str], beside: dict[str, str]) -> bool:
    """Draw the switches that were scored into a PNG at ``path``, and rules ``beside`` as level lines.

    Returns whether there was one.  ``ValueError`` without matplotlib.
    """
    there = [text for text in switched if scored.has(text)]
    if not there:
        return False
    metrics = scored.metrics
    lines = -(-len(metrics) // 2)
    with new_figure(9.6, 3.7 * lines, DPI) as figure:
        panels = list(figure.subplots(lines, min(2, len(metrics)), squeeze=False).flat)
        for axes, metric in zip(panels, metrics, strict=False):
            _panel(axes, scored, metric, there, beside)
        for axes in panels[len(metrics) :]:
            axes.set_axis_off()
        picture = picture_of(figure)
    record = {"rules": there, "metrics": metrics}
    save_png(picture, path, "segue reproduce inference, the switch", record)
    return True


def _panel(axes: Any, scored: ScoredRules, metric: str, there: Sequence[str], beside: dict[str, str]) -> None:
    score, judge = split_metric(metric)
    points = [(switch_of(text), interval) for text in there if (interval := scored.interval(text, score, judge)) is not None]
    points.sort(key=lambda pair: pair[0])
    levels, values = [level for level, _ in points], [interval.value for _, interval in points]
    below = [max(0.0, interval.value - interval.low) for _, interval in points]
    above = [max(0.0, interval.high - interval.value) for _, interval in points]
    axes.errorbar(levels, values, (below, above), color=COLOUR, marker="o", capsize=3, linewidth=1.5)
    for name, text in beside.items():
        interval = scored.interval(text, score, judge)
        if interval is not None:
            colour = LINES.get(name, GREY)
            axes.axhline(interval.value, color=colour, linestyle=(0, (4, 3)), linewidth=1.1)
            axes.annotate(name, (1, interval.value), (-2, 3), ("axes fraction", "data"), "offset points", ha="right",
                          fontsize=8.5, color=colour)  # fmt: skip
    axes.set_title(f"{SIDES[score][0]}  by {short_name(judge)}", fontsize=10, color=INK, loc="left")
    axes.set_xlabel("switch: CFG above this noise level, the weak branch below", fontsize=9, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if score == ACCURACY:
        axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))
