"""Tables show figures of rows and nothing else; correlations of ranks agree with torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.regression import spearman_corrcoef

from segue.bench.quality.interval import interval_of, standard_error
from segue.bench.quality.rows import RowForm
from segue.bench.quality.tables import (
    agreement_table,
    confusion_table,
    interval_text,
    quality_tables,
    rank_correlation,
    score_table,
)
from segue.bench.report import report_text
from segue.bench.scores.intervals import Interval, wilson
from segue.bench.timing import once

RULES = ("none", "cfg:scale=2", "sgg", "ag")
ACCURACIES = {"first@1a2b": (0.5, 0.75, 0.9, 0.75), "second@ffff": (0.6, 0.7, 0.8, 0.9)}
DISTANCES = {"first@1a2b": (0.2, 0.02, 0.01, 0.4), "second@ffff": (0.3, 0.03, 0.02, 0.5)}


@pytest.fixture
def rows(environment):
    form, made = RowForm(environment, "a model, 100 samples", "float32"), []
    for place, rule in enumerate(RULES):
        made.append(form.row(rule, "cost relative to unguided", "x", once(1 + place / 4)))
        for judge, values in ACCURACIES.items():
            share, distance = values[place], DISTANCES[judge][place]
            interval, note = wilson(round(100 * share), 100, 0.6), "3>1:9 0>2:4 1>0:1"
            made.append(form.interval_row(rule, f"accuracy by {judge}", "share", interval, 100, note))
            interval = Interval(distance, distance - 0.01, distance + 0.01)
            made.append(form.interval_row(rule, f"Frechet distance per feature by {judge}", "distance", interval, 100))
            made.append(form.interval_row(rule, f"recall by {judge}", "share", wilson(9, 100, 0.6), 100))
    return made


def test_a_rule_is_a_line_with_its_cost_and_intervals_by_every_judge(rows):
    head, _, *lines = score_table(rows).splitlines()
    assert head == "| rule | cost | accuracy by first | FD by first | accuracy by second | FD by second |"
    assert len(lines) == len(RULES)
    ends = wilson(50, 100)
    distance = interval_of(rows[2])
    expected = f".500 ({ends.low:.3f} to {ends.high:.3f}) | .200 ({distance.low:.3f} to {distance.high:.3f})"
    assert lines[0].startswith(f"| none | 1.00x | {expected.replace('0.', '.')} |")
    assert lines[1].startswith("| cfg:scale=2 | 1.25x | .750 (")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01166, ".0117"), (0.0122, ".0122"), (-0.00345, "-.00345"), (0.0254, ".0254"), (0.9996, "1.000"), (12.34567, "12.346")],
)
def test_a_number_has_three_digits_that_count(environment, value, text):
    """Of distances that differ in the third, as those of the rules of a good model do, a table must tell which is less."""
    form = RowForm(environment, "a model", "float32")
    row = form.interval_row("none", "kernel distance by first", "distance", Interval(value, value, value), 100)
    assert interval_text(row) == f"{text} ({text} to {text})"


@pytest.mark.parametrize(
    ("score", "value", "low"),
    [
        ("Frechet distance per feature", 0.04, 0.0),
        ("Frechet distance per feature", -1e-9, -1e-9),  # a rounding, which stays inside its interval
        ("density", 0.02, 0.0),
        ("inception score", 1.01, 1.0),
        ("kernel distance", 0.01, None),  # unbiased, so it may be less than 0
    ],
)
def test_an_interval_ends_where_the_score_does(environment, score, value, low):
    form = RowForm(environment, "a model", "float32")
    row = form.interval_row("none", f"{score} by first", "distance", Interval(value, value - 0.03, value + 0.03), 100)
    found = interval_of(row)
    assert found.value == value and found.high - value > 0.06
    assert found.low == (pytest.approx(2 * value - found.high) if low is None else low)
    assert standard_error(row) > 0.02  # of the whole width, whatever is shown


def test_a_case_has_a_table_of_its_own_and_the_last_row_of_a_key_counts(rows, environment):
    form = RowForm(environment, "another model", "float32")
    other = [form.interval_row("none", "accuracy by first@1a2b", "share", wilson(1, 100, 0.6), 100)]
    again = RowForm(environment, "a model, 100 samples", "float32")
    newer = [again.interval_row("none", "accuracy by first@1a2b", "share", wilson(99, 100, 0.6), 100)]
    text = quality_tables(rows + other + newer)
    assert "**a model, 100 samples**" in text and "**another model**" in text and "`segue bench test`" in text
    assert "| none | 1.00x | .990 (" in text and "| none | 1.00x | .500 (" not in text
    assert "### Quality" in report_text(rows) and "| sgg | 1.50x | .900 (" in report_text(rows)


def test_ranks_agree_with_torchmetrics(seed):
    generator = np.random.default_rng(seed)
    for _ in range(5):
        first, second = generator.integers(0, 6, 12), generator.normal(size=12)  # with equal ones, and without
        expected = spearman_corrcoef(torch.tensor(first, dtype=torch.float64), torch.tensor(second))
        assert rank_correlation(first.tolist(), second.tolist()) == pytest.approx(float(expected), abs=1e-6)
    assert rank_correlation([1, 2, 3], [10, 20, 1000]) == 1 and rank_correlation([1, 2, 3], [3, 2, 1]) == -1
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_judges_agree_as_far_as_their_orders_do(rows):
    lines = agreement_table(rows).splitlines()[2:]
    accuracy = rank_correlation(*ACCURACIES.values())
    assert lines == [f"| accuracy | first | second | {accuracy:.2f} | 4 |", "| FD | first | second | 1.00 | 4 |"]
    assert agreement_table([row for row in rows if row.variant in RULES[:2]]) == ""  # two rules have no order to speak of


def test_mistakes_are_those_of_the_notes_with_names_where_there_are(rows):
    lines = confusion_table(rows, 2, ("alba", "crispa")).splitlines()[2:]
    assert lines[:2] == ["| none | first | class 3 | crispa | 9 |", "| none | first | alba | class 2 | 4 |"]
    assert len(lines) == 2 * 2 * len(RULES)
