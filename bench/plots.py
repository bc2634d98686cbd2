"""Plots of result rows as SVG files: the same rows give the same bytes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .rows import Row
from .tables import ERROR, GAIN, GUIDED, by_device

POINT = re.compile(r"(?P<rule>\w+), (?P<axis>\w+) (?P<value>[\d.]+)")


def write_plots(rows: list[Row], out: Path) -> list[Path]:
    """Every plot that the rows allow; of each other one a line says what is missing.  Without matplotlib there are none."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (pip install 'segue[plots]')")
        return []
    from matplotlib.figure import Figure

    written = []
    with matplotlib.rc_context({"svg.hashsalt": "segue", "svg.fonttype": "none"}):
        for name, plot in PLOTS.items():
            figure = Figure(figsize=(7, 4.5), layout="constrained")
            if plot.draw(figure, rows):
                path = out / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None})
                written.append(path)
            else:
                print(f"plot {name}: not drawn, there are no {plot.needs}")
    return written


def _place(row: Row) -> str:
    return f"{row.device}, {row.dtype}"


def _legend(figure: Any, axes: Any) -> None:
    """Below the plot, where it covers nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=7, frameon=False)


def _points(rows: list[Row], axis: str) -> dict[str, list[tuple[float, Row]]]:
    """Guided over unguided rows of the scaling suite along an axis, by case, in order of the value."""
    series: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        match = POINT.fullmatch(row.variant)
        if row.suite == "scaling" and row.metric == GUIDED and match and match["axis"] == axis:
            series.setdefault(f"{row.case.removesuffix(f', by {axis}')}, {_place(row)}", []).append(
                (float(match["value"]), row)
            )
    return {case: sorted(points, key=lambda point: point[0]) for case, points in series.items()}


def _ratio_plot(figure: Any, series: dict[str, list[tuple[float, Row]]], label: str) -> Any:
    """Measured ratios with their spread, and the plan's dashed in the same colour."""
    axes = figure.subplots()
    for case, points in series.items():
        values, measured = [value for value, _ in points], [row.value for _, row in points]
        below, above = [row.value - row.p20 for _, row in points], [row.p80 - row.value for _, row in points]
        line = axes.errorbar(values, measured, (below, above), marker="o", capsize=3, label=case)
        planned = [(value, row.expected) for value, row in points if row.expected is not None]
        if planned:
            axes.plot(*zip(*planned, strict=True), linestyle="--", color=line[0].get_color())
    axes.plot([], [], linestyle="--", color="gray", label="plan")
    axes.set(xlabel=label, ylabel="time relative to unguided")
    axes.grid(alpha=0.3)
    _legend(figure, axes)
    return axes


def cost_against_switch(figure: Any, rows: list[Row]) -> bool:
    """Segmented guidance: 0 is skip-layer guidance throughout, 1 is CFG throughout."""
    from matplotlib.ticker import PercentFormatter

    series = _points(rows, "switch")
    if series:
        axes = _ratio_plot(figure, series, "share of the calls before the switch, under CFG; the others skip layers")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return bool(series)


def cost_against_batch(figure: Any, rows: list[Row]) -> bool:
    """On a logarithmic axis whose ticks are the batches that were measured."""
    series = _points(rows, "batch")
    if series:
        axes = _ratio_plot(figure, series, "samples in a batch")
        axes.set_xscale("log", base=2)
        batches = sorted({value for points in series.values() for value, _ in points})
        axes.set_xticks(batches, [f"{batch:g}" for batch in batches])
        axes.minorticks_off()
    return bool(series)


def waterfall(figure: Any, rows: list[Row]) -> bool:
    """Time of a run, stage by stage, relative to the published algorithm; what approximates is hatched, with its error."""
    stages: dict[str, dict[str, Row]] = {}
    errors: dict[tuple[str, str], float] = {}
    for row in rows:
        case = f"{row.case}, {_place(row)}"
        if row.suite == "step" and row.metric == GAIN:
            stages.setdefault(case, {})[row.variant] = row
        elif row.suite == "step" and row.metric == ERROR:
            errors[case, row.variant] = row.value
    if not stages:
        return False
    longest_first = sorted(stages.values(), key=len, reverse=True)  # the others lack some of its stages
    names = list(dict.fromkeys(name for gains in longest_first for name in gains))
    figure.set_size_inches(7, max(4.5, 1.5 + 0.14 * len(names) * (1 + len(stages))))
    axes, height = figure.subplots(), 0.8 / len(stages)
    for index, (case, gains) in enumerate(stages.items()):
        places = [names.index(name) + (index + 0.5) * height - 0.4 for name in gains]
        times = [1 / row.value for row in gains.values()]
        below = [1 / row.value - 1 / row.p80 for row in gains.values()]
        above = [1 / row.p20 - 1 / row.value for row in gains.values()]
        bars = axes.barh(places, times, height, xerr=(below, above), capsize=2, error_kw={"elinewidth": 1}, label=case)
        for bar, place, (name, row) in zip(bars, places, gains.items(), strict=True):
            error = errors.get((case, name))
            if error is not None:
                bar.set(hatch="///", edgecolor="white")
                text = f"  approximation, error {error:.2g}"
                axes.text(1 / row.p20, place, text, verticalalignment="center", fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("time relative to the published algorithm (20th to 80th percentile)")
    _legend(figure, axes)
    return True


class Ceiling(NamedTuple):
    """Of one device: TB/s of a copy, TFLOP/s of a product in one dtype, if it was measured."""

    copy: float
    product: float | None

    def rate(self, intensity: float) -> float:
        """TFLOP/s at most at FLOP per byte."""
        return min(self.copy * intensity, self.product or float("inf"))


def roofline(figure: Any, rows: list[Row]) -> bool:
    """Achieved rate of every operation that computes over its arithmetic intensity; a panel per device and dtype."""
    kernels = [row for row in rows if row.suite == "kernels"]
    panels = {}
    for place, here in by_device(kernels).items():
        points, ceiling = _achieved(here), _ceiling(kernels, *place)
        if points and ceiling:
            panels[place] = points, ceiling
    if not panels:
        return False
    figure.set_size_inches(max(7, 5 * len(panels)), 4.5)
    for axes, (place, (points, ceiling)) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _roofline_panel(axes, points, ceiling)
        axes.set_title(", ".join(place), fontsize=9)
    return True


def _achieved(rows: list[Row]) -> dict[str, list[tuple[float, float]]]:
    """FLOP per byte and TFLOP/s of every operation, by implementation."""
    intensity = {row.case: row.value for row in rows if row.metric == "arithmetic intensity"}
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        at = intensity.get(row.case)
        if at and row.metric in ("bandwidth", "rate"):
            points.setdefault(row.variant, []).append((at, row.value * (at if row.unit == "TB/s" else 1.0)))
    return points


def _ceiling(rows: list[Row], device: str, dtype: str) -> Ceiling | None:
    """The newest ceilings of this device; the product is that of ``dtype``."""
    here = {row.variant: row.value for row in rows if row.device == device}
    return Ceiling(here["large copy"], here.get(f"large product, {dtype}")) if "large copy" in here else None


def _roofline_panel(axes: Any, points: dict[str, list[tuple[float, float]]], ceiling: Ceiling) -> None:
    for variant, places in points.items():
        axes.scatter(*zip(*places, strict=True), s=14, label=variant)
    span = [at for places in points.values() for at, _ in places]
    ridge = [ceiling.product / ceiling.copy] if ceiling.product else []
    xs = [min(span) / 2, *ridge, max([*span, *ridge]) * 2]
    label = "measured copy and product" if ridge else "measured copy"
    axes.plot(xs, [ceiling.rate(x) for x in xs], color="black", label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    axes.legend(fontsize=7)


class Plot(NamedTuple):
    """What draws on a figure and returns whether the rows allowed it, and the rows that it needs."""

    draw: Callable[[Any, list[Row]], bool]
    needs: str


PLOTS = {
    "cost-against-switch": Plot(cost_against_switch, "rows of the scaling suite along the switch"),
    "cost-against-batch": Plot(cost_against_batch, "rows of the scaling suite along the batch"),
    "waterfall": Plot(waterfall, "stages of the step suite"),
    "roofline": Plot(roofline, "operations of the kernels suite with the copy of the same device"),
}
