"""Quality against cost: the front is what no other point beats, and every name can be read."""

from itertools import combinations

import numpy as np
import pytest
from made_up_scores import SCORES, made_up_scores
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from segue.bench.pictures.measured import Measured
from segue.bench.pictures.quality_cost import BESIDE, Point, draw_made, draw_panel, front, points_of
from segue.bench.quality.rows import REAL, RowForm
from segue.bench.scores.intervals import Interval

CASE = "small 12ab, 24 samples from seed 7, 3 steps, euler, beside 99 leaves"


def naive_front(costs, losses) -> set[int]:
    """By asking every pair."""

    def beats(a: int, b: int) -> bool:
        no_worse = costs[a] <= costs[b] and losses[a] <= losses[b]
        return no_worse and (costs[a] < costs[b] or losses[a] < losses[b])

    count = range(len(costs))
    return {b for b in count if not any(beats(a, b) for a in count)}


def test_the_front_is_what_no_other_point_beats(seed):
    generator = np.random.default_rng(seed)
    for count in (1, 2, 7, 63):
        for _ in range(20):  # with equal ones, and points that are the same in both
            costs, losses = generator.integers(0, 6, (2, count)).tolist()
            found = front(costs, losses)
            assert set(found) == naive_front(costs, losses) and len(set(found)) == len(found)
            assert [costs[i] for i in found] == sorted(costs[i] for i in found)


@pytest.fixture
def measured(environment):
    rows = made_up_scores(environment, CASE, "judge@1234")
    form = RowForm(environment, CASE, "float32")
    metric = "Frechet distance per feature by judge@1234"
    rows.append(form.interval_row(REAL, metric, "distance", Interval(0.05, 0.04, 0.06), 24))
    return Measured.of(rows, "small 12ab", "judge@1234", "rows.jsonl")


@pytest.mark.parametrize(("score", "column", "best"), [("accuracy", 1, {0, 3}), ("Frechet distance per feature", 2, {0, 2})])
def test_a_panel_shows_every_rule_once_and_fills_the_front(measured, score, column, best):
    axes = Figure(figsize=(5, 4.5), layout="constrained").subplots()
    names = {"none": "unguided"} | {rule: f"{rule} by its own numbers" for rule in list(SCORES)[1:]}
    texts = draw_panel(axes, measured, score, points_of(measured, score, names))
    assert [text.get_text() for text in texts] == list(names.values())
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    for index, (dot, (cost, *values)) in enumerate(zip(dots, SCORES.values(), strict=True)):
        expected = values[column - 1] / (24 if column == 1 else 1)
        assert np.allclose([*dot.get_xdata(), *dot.get_ydata()], [cost, expected])
        assert (dot.get_markerfacecolor() != "white") == (index in best)
    real = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in real] == ([] if column == 1 else [0.05])


def test_rules_by_other_numbers_are_small_dots_without_a_name(measured):
    """And no part of the front; where no rule has a name, all are shown by their text."""
    axes, bare = (Figure(figsize=(5, 4.5), layout="constrained").subplots() for _ in range(2))
    texts = draw_panel(axes, measured, "accuracy", points_of(measured, "accuracy", {"none": "unguided"}))
    assert [text.get_text() for text in texts] == ["unguided"]
    sizes = sorted(line.get_markersize() for line in axes.lines if line.get_marker() == "o")
    assert len(sizes) == len(SCORES) and sizes[:-1] == [4] * (len(SCORES) - 1) and sizes[-1] == 8
    texts = draw_panel(bare, measured, "accuracy", points_of(measured, "accuracy", {}))
    assert [text.get_text() for text in texts] == list(SCORES)


def test_dots_far_from_the_named_rules_are_counted_and_do_not_set_the_scale(measured):
    axes = Figure(figsize=(5, 4.5), layout="constrained").subplots()
    points = points_of(measured, "Frechet distance per feature", {"none": "unguided", "cfg:scale=2": "cfg"})
    far = [Point(f"cfg:scale={scale}", f"cfg:scale={scale}", 2.0, Interval(scale, scale, scale)) for scale in (7.0, 9.0)]
    draw_panel(axes, measured, "Frechet distance per feature", [*points, far[0]])
    assert "1 small dot lies outside" in [text.get_text() for text in axes.texts]
    low, high = axes.get_ylim()
    named = [end for point in points if point.name != point.rule for end in (point.score.low, point.score.high, 0.05)]
    assert low < min(named) and max(named) < high < 1
    other = Figure(figsize=(5, 4.5), layout="constrained").subplots()
    draw_panel(other, measured, "Frechet distance per feature", [*points, *far])
    assert "2 small dots lie outside" in [text.get_text() for text in other.texts]


def test_a_line_leads_to_the_dot_of_a_name_that_had_to_move_away(measured):
    axes = Figure(figsize=(5, 4.5), layout="constrained").subplots()
    close = [Point(f"rule {k}", "none", 1 + k / 50, Interval(0.5, 0.49, 0.51)) for k in (*range(8), 50)]
    names = draw_panel(axes, measured, "accuracy", close)
    lines = [text for text in axes.texts if text.arrow_patch is not None]
    moved = [name for name in names if tuple(name.xyann) not in BESIDE]
    assert moved and [(*line.xy, *line.xyann) for line in lines] == [(*name.xy, *name.xyann) for name in moved]


def test_networks_with_guidance_in_the_weights_have_a_line_each_beside_the_unguided_model(measured):
    axes = Figure(figsize=(5, 3), layout="constrained").subplots()
    made = [
        Point("trained, none", "none", 1.0, Interval(0.5, 0.4, 0.6)),
        Point("distilled, sgg", "none", 1.0, Interval(0.7, 0.7, 0.8)),
    ]
    draw_made(axes, measured, "accuracy", made)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["trained, none", "distilled, sgg"]
    dots = [line for line in axes.lines if line.get_marker() == "D"]
    assert [(*dot.get_xdata(), *dot.get_ydata()) for dot in dots] == [(0.5, 0), (0.7, 1)]
    (unguided,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert np.allclose(unguided.get_xdata(), SCORES["none"][1] / 24)


def test_names_cover_neither_each_other_nor_a_dot_and_stay_in_the_panel(measured):
    axes = Figure(figsize=(5, 4.5), layout="constrained").subplots()
    points = points_of(measured, "accuracy", {})
    boxes = [text.get_window_extent() for text in draw_panel(axes, measured, "accuracy", points)]
    assert not any(Bbox.intersection(*pair) for pair in combinations(boxes, 2))
    inside = axes.get_window_extent()
    for box in boxes:
        assert np.allclose(Bbox.intersection(box, inside).bounds, box.bounds, atol=1.0)
        assert not any(box.contains(*axes.transData.transform((point.cost, point.score.value))) for point in points)
