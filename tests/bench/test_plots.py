"""Plots: what stands in them is what stands in the rows, and nothing covers it."""

import pytest

from segue.bench import plots
from segue.bench.rows import Environment, Row, make_row
from segue.bench.tables import ERROR, GAIN, GUIDED
from segue.bench.timing import Statistic

Figure = pytest.importorskip("matplotlib.figure").Figure
GPU, CPU = "a GPU", "a CPU"


def row(suite: str, case: str, variant: str, metric: str, unit: str, value: float, device=GPU, dtype="bfloat16") -> Row:
    statistic = Statistic(value, 0.9 * value, 1.2 * value, 7)
    environment = Environment(device, 1, {}, "abc", "segue bench test")
    return make_row(environment, suite, case, variant, metric, unit, statistic, dtype, 1.5)


def drawn(name: str, rows: list[Row]):
    """The figure of a plot, not laid out yet."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    assert plots.PLOTS[name].draw(figure, rows)
    return figure


def fall(gains: dict[str, float], **where) -> list[Row]:
    return [row("step", "model, sgg", stage, GAIN, "x", gain, **where) for stage, gain in gains.items()]


def test_the_waterfall_shows_times_their_spread_and_the_error_of_approximations():
    rows = fall({"as published": 1.0, "+ fork": 2.0, "+ reuse": 4.0, "+ fp8 linears": 5.0})
    rows += [
        row("step", "model, sgg", name, ERROR, "relative", value) for name, value in (("+ reuse", 0.25), ("+ fp8 linears", 0.5))
    ]
    rows.append(row("step", "model, sgg", "+ fp8 linears", "error of a network evaluation", "relative", 0.125))
    rows.append(row("step", "other, sgg", "+ fork", ERROR, "relative", 0.75))
    (axes,) = drawn("waterfall", rows).axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 0.5, 0.25, 0.2]
    (spread,) = axes.collections
    assert [segment[:, 0].tolist() for segment in spread.get_segments()] == [
        pytest.approx([1 / (1.2 * gain), 1 / (0.9 * gain)]) for gain in (1, 2, 4, 5)
    ]
    texts = {text.get_text().split()[-1]: text.get_position()[1] for text in axes.texts}
    centres = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert texts == {"0.25": pytest.approx(centres[2]), "0.5": pytest.approx(centres[3])}
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, False, True, True]


def test_stages_of_several_devices_stand_in_their_order():
    here = fall({"as published": 1.0, "+ reuse": 2.0}, device=CPU, dtype="float32")
    (axes,) = drawn("waterfall", here + fall({"as published": 1.0, "+ graph": 1.5, "+ reuse": 3.0})).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["as published", "+ graph", "+ reuse"]
    bars = {round(bar.get_y() + bar.get_height() / 2, 6): bar.get_width() for bar in axes.patches}
    assert list(dict(sorted(bars.items())).values()) == pytest.approx([1, 1, 1 / 1.5, 1 / 2, 1 / 3])


def points(axis: str, values, **where) -> list[Row]:
    return [row("scaling", f"model, by {axis}", f"sgg, {axis} {v:g}", GUIDED, "x", 1.5 + v, **where) for v in values]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("waterfall", fall({f"stage {i}": 1.0 + i for i in range(9)}) + fall({"stage 0": 1.0}, device=CPU)),
        ("cost-against-switch", points("switch", (0, 0.5, 1)) + points("switch", (0, 1), device=CPU)),
        ("cost-against-batch", points("batch", (1, 2, 4, 8))),
    ],
)
def test_the_legend_covers_nothing(name, rows):
    figure = drawn(name, rows)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())
    assert figure.bbox.containsx(legend.get_window_extent().x0)
    assert figure.bbox.containsy(legend.get_window_extent().y0)


def test_batches_double_along_the_axis_and_the_switch_is_a_percentage():
    (axes,) = drawn("cost-against-batch", points("batch", (1, 2, 8))).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "8"]
    at = axes.transData.transform([(1, 1.6), (2, 1.6), (8, 1.6)])[:, 0]
    assert at[2] - at[0] == pytest.approx(3 * (at[1] - at[0]))
    (axes,) = drawn("cost-against-switch", points("switch", (0, 0.5, 1))).axes
    assert axes.xaxis.get_major_formatter()(0.75) == "75%"


def operation(name: str, intensity: float, rate: float, unit: str, **where) -> list[Row]:
    metric = "bandwidth" if unit == "TB/s" else "rate"
    return [
        row("kernels", name, "reference", "arithmetic intensity", "FLOP/byte", intensity, **where),
        row("kernels", name, "reference", metric, unit, rate, **where),
    ]


def test_the_roofline_mixes_neither_devices_nor_dtypes():
    """Two devices, two dtypes on one; the same operation everywhere, and one that computes nothing."""
    rows, expected = [], {}
    for device, dtype, copy, product in (
        (GPU, "bfloat16", 4.0, 800.0),
        (GPU, "float32", None, 50.0),
        (CPU, "float32", 0.02, 0.1),
    ):
        where = {"device": device, "dtype": dtype}
        if copy:
            rows.append(row("kernels", "ceilings", "large copy", "bandwidth", "TB/s", copy, **where))
        rows.append(row("kernels", "ceilings", f"large product, {dtype}", "rate", "TFLOP/s", product, **where))
        rows += operation("attention", 1000.0, product / 2, "TFLOP/s", **where)
        rows += operation("norm", 2.0, (copy or 4.0) / 2, "TB/s", **where)
        rows += operation("gather", 0.0, 1.0, "TB/s", **where)
        expected[f"{device}, {dtype}"] = (product, [(1000.0, product / 2), (2.0, copy or 4.0)])
    figure = drawn("roofline", rows)
    assert {axes.get_title() for axes in figure.axes} == set(expected)
    for axes in figure.axes:
        product, places = expected[axes.get_title()]
        (line,), (dots,) = axes.lines, axes.collections
        assert max(line.get_ydata()) == pytest.approx(product)
        assert dots.get_offsets().tolist() == [pytest.approx(place) for place in places]


def test_without_a_product_of_its_dtype_a_panel_has_the_copy_alone():
    rows = [row("kernels", "ceilings", "large copy", "bandwidth", "TB/s", 4.0)]
    rows.append(row("kernels", "ceilings", "large product, bfloat16", "rate", "TFLOP/s", 800.0))
    (axes,) = drawn("roofline", rows + operation("norm", 2.0, 3.0, "TB/s", dtype="float32")).axes
    xs, ys = axes.lines[0].get_data()
    assert list(ys) == [4.0 * x for x in xs]


def test_what_the_rows_do_not_allow_is_said_once(tmp_path, capsys):
    written = plots.write_plots(points("batch", (1, 2)), tmp_path)
    assert [path.name for path in written] == ["cost-against-batch.svg"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["plot cost-against-switch", "plot waterfall", "plot roofline"]
    assert all("not drawn, there are no " in line for line in said)


def test_hatches_and_errors_give_the_same_bytes_too(tmp_path):
    rows = [*fall({"as published": 1.0, "+ reuse": 2.0}), row("step", "model, sgg", "+ reuse", ERROR, "relative", 0.25)]
    (path,) = plots.write_plots(rows, tmp_path)
    first = path.read_bytes()
    assert b"approximation, error 0.25" in first
    assert plots.write_plots(rows, tmp_path) == [path]
    assert path.read_bytes() == first
