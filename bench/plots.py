"""Plots of result rows as SVG files: the same rows give the same bytes."""

import re
from collections.abc import Callable
from pathlib import Path

from .rows import Row

POINT = re.compile(r"(?P<rule>\w+), (?P<axis>\w+) (?P<value>[\d.]+)")
GUIDED = "cost relative to unguided"


def write_plots(rows: list[Row], out: Path) -> list[Path]:
    """Every plot that the rows allow.  Without matplotlib there are none, which is said once."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (pip install 'segue[plots]')")
        return []
    from matplotlib.figure import Figure

    written = []
    with matplotlib.rc_context({"svg.hashsalt": "segue", "svg.fonttype": "none"}):
        for name, draw in PLOTS.items():
            figure = Figure(figsize=(7, 4.5), layout="constrained")
            if draw(figure.subplots(), rows):
                path = out / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None})
                written.append(path)
    return written


def _points(rows: list[Row], axis: str) -> dict[str, list[tuple[float, Row]]]:
    """Guided over unguided rows of the scaling suite along an axis, by case, in order of the value."""
    series: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        match = POINT.fullmatch(row.variant)
        if row.suite == "scaling" and row.metric == GUIDED and match and match["axis"] == axis:
            series.setdefault(f"{row.case}, {row.device}", []).append((float(match["value"]), row))
    return {case: sorted(points, key=lambda point: point[0]) for case, points in series.items()}


def _ratio_plot(axes, rows: list[Row], axis: str, label: str) -> bool:
    series = _points(rows, axis)
    for case, points in series.items():
        values, measured = [value for value, _ in points], [row.value for _, row in points]
        below, above = [row.value - row.p20 for _, row in points], [row.p80 - row.value for _, row in points]
        line = axes.errorbar(values, measured, (below, above), marker="o", capsize=3, label=f"{case}, measured")
        planned = [row.expected for _, row in points]
        axes.plot(values, planned, linestyle="--", color=line[0].get_color(), label="plan")
    axes.set_xlabel(label)
    axes.set_ylabel("time relative to unguided")
    if series:
        axes.legend(fontsize=7)
    return bool(series)


def cost_against_switch(axes, rows: list[Row]) -> bool:
    """Segmented guidance: 0 is skip-layer guidance throughout, 1 is CFG throughout."""
    return _ratio_plot(axes, rows, "switch", "share of the calls before the switch")


def cost_against_batch(axes, rows: list[Row]) -> bool:
    return _ratio_plot(axes, rows, "batch", "batch")


def waterfall(axes, rows: list[Row]) -> bool:
    """Time of a run, stage by stage, relative to the published algorithm."""
    stages: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.suite == "step" and row.metric == "speed-up over the published algorithm":
            stages.setdefault(f"{row.case}, {row.device}", {})[row.variant] = 1 / row.value
    names = list(dict.fromkeys(name for case in stages.values() for name in case))
    for index, (case, shares) in enumerate(stages.items()):
        height = 0.8 / len(stages)
        places = [names.index(name) + index * height for name in shares]
        axes.barh(places, list(shares.values()), height=height, label=case)
    axes.set_yticks([place + 0.4 - 0.4 / max(1, len(stages)) for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("time relative to the published algorithm")
    if stages:
        axes.legend(fontsize=7, loc="lower right")
    return bool(stages)


def roofline(axes, rows: list[Row]) -> bool:
    """Achieved rate of every operation over its arithmetic intensity, under the measured ceilings."""
    kernels = [row for row in rows if row.suite == "kernels"]
    intensity = {(row.case, row.device): row.value for row in kernels if row.metric == "arithmetic intensity"}
    placed: dict[str, list[tuple[float, float]]] = {}
    for row in kernels:
        at = intensity.get((row.case, row.device))
        if at and row.metric in ("bandwidth", "rate"):
            placed.setdefault(row.variant, []).append((at, row.value * (at if row.unit == "TB/s" else 1.0)))
    copies = [row.value for row in kernels if row.variant == "large copy"]
    products = [row.value for row in kernels if row.variant == "large product, bfloat16"]
    if not (placed and copies and products):
        return False
    for variant, points in placed.items():
        axes.scatter(*zip(*points, strict=True), s=14, label=variant)
    span = sorted(at for points in placed.values() for at, _ in points)
    xs = [span[0] / 2, products[-1] / copies[-1], max(span[-1], products[-1] / copies[-1]) * 2]
    axes.plot(xs, [min(products[-1], copies[-1] * x) for x in xs], color="black", label="measured ceilings")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    axes.legend(fontsize=7)
    return True


PLOTS: dict[str, Callable] = {
    "cost-against-switch": cost_against_switch,
    "cost-against-batch": cost_against_batch,
    "waterfall": waterfall,
    "roofline": roofline,
}
