"""Rows of quality that nobody measured: the scores of a few rules by one judge, as ``segue score`` writes them."""

from segue.bench.quality.rows import RowForm
from segue.bench.rows import Environment, Row
from segue.bench.scores.intervals import Interval, wilson
from segue.bench.timing import once

SAMPLES = 24
SCORES = {  # cost, how many samples are right, distance
    "none": (1.0, 12, 0.3),
    "cfg:scale=2": (2.0, 20, 0.2),
    "cfg:scale=3": (2.0, 18, 0.1),
    "slg:weight=1,layers=1": (1.5, 20, 0.4),
}


def made_up_scores(environment: Environment, case: str, judge: str, shift: float = 0.0) -> list[Row]:
    """Rows of one case; every distance is ``shift`` more."""
    form, rows = RowForm(environment, case, "float32"), []
    for rule, (cost, right, distance) in SCORES.items():
        rows.append(form.row(rule, "cost relative to unguided", "x", once(cost)))
        rows.append(form.interval_row(rule, f"accuracy by {judge}", "share", wilson(right, SAMPLES, 0.6), SAMPLES))
        value = distance + shift
        interval = Interval(value, value - 0.01, value + 0.01)
        rows.append(form.interval_row(rule, f"Frechet distance per feature by {judge}", "distance", interval, SAMPLES))
    return rows
