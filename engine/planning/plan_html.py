"""A plan as a table of a notebook: the lines that it prints, as HTML."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from ..rules.rule_text import shown_rule
from .plan_text import COLUMNS, cost_lines, heading, run_cells

if TYPE_CHECKING:
    from .plan import Plan  # which shows itself with this module


def plan_html(plan: "Plan") -> str:
    """Heading, rule, one row for each run of calls, the cost and the warnings."""
    lines = [f"<b>{escape(heading(plan))}</b>", f"<code>{escape(shown_rule(plan.guidance))}</code>"]
    below = [*cost_lines(plan), *(f"warning: {warning}" for warning in plan.warnings)]
    return "<br>".join([*lines, table_html(COLUMNS, run_cells(plan)), *map(escape, below)])


def table_html(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Text in cells, numbers to the right and the last column to the left."""
    places = ["right"] * (len(columns) - 1) + ["left"]

    def cells(tag: str, line: Sequence[str]) -> str:
        shown = (f'<{tag} style="text-align: {place}">{escape(cell)}</{tag}>' for place, cell in zip(places, line, strict=True))
        return f"<tr>{''.join(shown)}</tr>"

    return f"<table>{cells('th', columns)}{''.join(cells('td', row) for row in rows)}</table>"
