"""The page on reused directions: every rule with directions held, extrapolated, and computed at the calls of a search."""

from collections.abc import Mapping, Sequence

from ..quality.interval import student_interval
from ..rows import Row
from ..tables import GUIDED, markdown_table
from .page import Content, Missing

SUITE, COMMAND, TITLE = "reused", "reused", "Reused directions"
ERROR, EXACT = "error of finished samples", "exact"
LEAST = 96  # samples of a row


def regular(refresh: int, order: int) -> str:
    """The variant that computes directions at every ``refresh``-th call."""
    return f"every {refresh} calls, order {order}"


def reused_content(rows: Sequence[Row], networks: str, asked: Mapping[tuple[str, str], str]) -> Content:
    """A table for every case of ``networks``, of its rows.

    What is missing is so among ``asked``: by case and variant the command that measures it.
    """
    mine = [row for row in rows if row.suite == SUITE and row.case.startswith(f"{networks}, ")]
    parts, used = [], []
    for case in dict.fromkeys(row.case for row in mine):
        own = [row for row in mine if row.case == case and (row.metric != ERROR or row.n >= LEAST)]
        variants = dict.fromkeys(row.variant for row in own if row.metric == ERROR)
        if variants:
            found = {(row.variant, row.metric): row for row in own}
            lines = [_line(found, variant) for variant in variants]
            parts += [f"**{case}**", markdown_table(("directions", "cost", "error (95 %)", "rule"), lines)]
            used += own
    samples = {(row.case, row.variant): row.n for row in mine if row.metric == ERROR}
    missing = [
        Missing(f"{key[0].removeprefix(f'{networks}, ')}: {key[1]}", samples.get(key, 0), command)
        for key, command in asked.items()
        if samples.get(key, 0) < LEAST
    ]
    durations = [row for row in rows if row.suite == "duration"]
    return Content(parts, missing=missing, rows=[*used, *durations] if used else [], least=LEAST)


def _line(found: dict[tuple[str, str], Row], variant: str) -> list[str]:
    cost, error = found[variant, GUIDED], found[variant, ERROR]
    if variant == EXACT:
        return [variant, f"{cost.value:.3f}x", f"0; unguided differs by {error.value:.4f}", ""]
    interval = student_interval(error, least=0.0)
    shown = f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
    return [variant, f"{cost.value:.3f}x", shown, f"`{error.note}`"]
