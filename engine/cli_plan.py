"""``segue plan``: who runs when and what it costs."""

import json
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from segue.models.spec import ModelSpec
from segue.models.weights import load_model

from .cli_options import DEFAULT_MODEL, DEFAULT_SOLVER, RuleOptions, RunOptions, Source
from .cli_session import choose_rule, published_spec
from .core import resolve_plan
from .plan import Plan
from .plan_text import COLUMNS, cost_text, heading, plan_dict, run_cells


def show_plan(source: Source, rule: RuleOptions, run: RunOptions, as_json: bool) -> None:
    specs = find_specs(source)
    parsed = choose_rule(rule, specs["main"])
    plan = resolve_plan(specs, parsed.guidance, run.steps, run.schedule, run.solver or DEFAULT_SOLVER)
    if as_json:
        print(json.dumps({"rule": parsed.text} | plan_dict(plan)))
    else:
        _print_plan(plan, parsed.text)


def find_specs(source: Source) -> Mapping[str, ModelSpec]:
    """The specs of a model and of its guidance networks; a published size such as ``SiT-XL/2-512`` needs no weights."""
    name = source.model or DEFAULT_MODEL
    published = published_spec(name)
    if published:
        if source.family:
            raise ValueError(f"{name} names its family; --family {source.family} does not apply")
        return {"main": published}
    model, others = load_model(name, source.family)
    return {"main": model.spec} | {network: other.spec for network, other in others.items()}


def _print_plan(plan: Plan, rule: str) -> None:
    console = Console()
    table = Table()
    for name in COLUMNS:
        last = name == COLUMNS[-1]
        table.add_column(name, justify="left" if last else "right", no_wrap=not last)
    for cells in run_cells(plan):
        table.add_row(*cells)
    for line in (heading(plan), f"rule: {rule}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    for line in (cost_text(plan), *(f"warning: {warning}" for warning in plan.warnings)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
