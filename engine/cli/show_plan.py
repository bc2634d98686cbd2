"""``segue plan``: who runs when and what it costs."""

import json

from rich.console import Console
from rich.table import Table

from ..planning.plan import Plan
from ..planning.plan_text import COLUMNS, cost_lines, heading, legend, plan_dict, run_cells
from ..rules.batch import ParsedRules
from ..rules.presets import ParsedRule
from .options import PromptOptions, RuleOptions, RunOptions, Source
from .planned_model import PlannedModel
from .session import choose_rule


def show_plan(source: Source, rule: RuleOptions, run: RunOptions, text: PromptOptions, as_json: bool) -> None:
    """Print the plan of a rule on a model.  Raises ``ValueError`` or ``OSError``."""
    model = PlannedModel.of(source, rule.calibration)
    parsed = choose_rule(rule, model.main, source)
    plan = model.plan(parsed.guidance, run, text)
    if as_json:
        print(json.dumps({"rule": parsed.text, "notes": list(parsed.notes)} | plan_dict(plan)))
    else:
        _print_plan(plan, parsed)


def _print_plan(plan: Plan, rule: ParsedRule | ParsedRules) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        last = name == COLUMNS[-1]
        table.add_column(name, justify="left" if last else "right", no_wrap=not last)
    for cells in run_cells(plan):
        table.add_row(*cells)
    for line in (heading(plan), f"rule: {rule.text}", *(f"note: {note}" for note in rule.notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    for line in (*legend(plan), *cost_lines(plan), *(f"warning: {warning}" for warning in plan.warnings)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
