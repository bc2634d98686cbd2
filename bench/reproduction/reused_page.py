"""The page on reused directions: every rule with directions held, extrapolated, and computed at the calls of a search."""

from collections.abc import Sequence

from ..quality.interval import SPREAD_LEVEL
from ..rows import Row
from ..scores.intervals import LEVEL, SETS, student_quantile
from ..tables import GUIDED, markdown_table
from .page import Content

SUITE, COMMAND, TITLE = "reused", "reused", "Reused directions"
ERROR, EXACT = "error of finished samples", "exact"
LEAST = 96  # samples of a row


def regular(refresh: int, order: int) -> str:
    """The variant that computes directions at every ``refresh``-th call."""
    return f"every {refresh} calls, order {order}"


def reused_content(rows: Sequence[Row], cases: Sequence[str]) -> Content:
    """A table for every case, of its rows."""
    parts, used = [], []
    for case in cases:
        own = [row for row in rows if row.suite == SUITE and row.case == case and (row.metric != ERROR or row.n >= LEAST)]
        variants = dict.fromkeys(row.variant for row in own if row.metric == ERROR)
        if variants:
            found = {(row.variant, row.metric): row for row in own}
            lines = [_line(found, variant) for variant in variants]
            parts += [f"**{case}**", markdown_table(("directions", "cost", "error (95 %)", "rule"), lines)]
            used += own
    return Content(parts, rows=[*used, *(row for row in rows if row.suite == "duration")] if used else [])


def _line(found: dict[tuple[str, str], Row], variant: str) -> list[str]:
    cost, error = found[variant, GUIDED], found[variant, ERROR]
    if variant == EXACT:
        return [variant, f"{cost.value:.3f}x", f"0; unguided differs by {error.value:.4f}", ""]
    wider = student_quantile((1 + LEVEL) / 2, SETS - 1) / student_quantile((1 + SPREAD_LEVEL) / 2, SETS - 1)
    half = (error.p80 - error.value) * wider
    shown = f"{error.value:.3f} ({max(0.0, error.value - half):.3f} to {error.value + half:.3f})"
    return [variant, f"{cost.value:.3f}x", shown, f"`{error.note}`"]
