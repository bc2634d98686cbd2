"""``segue guidance``: every named rule with its formula, its source, and what it costs on a model."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from ..rules.catalogue import ENTRIES
from ..rules.presets import parse_rule
from ..rules.rule_names import NAMES
from .options import RunOptions, Source
from .planned_model import PlannedModel

ON_TOP_OF = "cfg"  # what corrections are added to


@dataclass(frozen=True)
class Listed:
    """A rule on a model: ``rule`` is the text that was planned, ``evaluations`` and ``cost`` those of its plan.

    They are None where the rule does not run on the model, for the ``reason``.
    """

    name: str
    title: str
    formula: str
    standing: str
    source: str
    rule: str | None
    evaluations: int | None
    cost: float | None
    reason: str = ""


def list_rules(source: Source, steps: int | None, as_json: bool) -> None:
    """Print every rule with the numbers of the model, or the usual ones."""
    model = PlannedModel.of(source)
    listed = list(_listed(model, steps))
    if as_json:
        print(json.dumps({"model": model.main.name, "rules": [asdict(rule) for rule in listed]}))
        return
    console = Console()
    table = Table(title=f"guidance on {model.main.name}", title_justify="left", box=None, pad_edge=False)
    for column, numeric in (
        ("rule", False),
        ("formula", False),
        ("evaluations", True),
        ("cost", True),
        ("standing", False),
        ("arXiv", False),
    ):
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column in ("rule", "cost"))
    for rule in listed:
        cost = ("-", "-") if rule.cost is None else (str(rule.evaluations), f"{rule.cost:.2f}x")
        table.add_row(rule.name, rule.formula, *cost, rule.standing, rule.source)
    console.print(table)
    for rule in listed:
        if rule.reason:
            console.print(f"[dim]{rule.name}: {rule.reason}[/dim]", highlight=False)
    console.print(
        "[dim]c, u, k: predictions for the condition, of the reference, of a weak copy; D = c - u; g: guided. Corrections are "
        f"planned on top of {ON_TOP_OF}.[/dim]",
        highlight=False,
    )


def _listed(model: PlannedModel, steps: int | None) -> Iterator[Listed]:
    for name, entry in ENTRIES.items():
        standing = f"{entry.standing}: {entry.note}" if entry.note else entry.standing
        text = f"{ON_TOP_OF} + {_shortest(name)}" if NAMES[name].correction else _shortest(name)
        told = name, NAMES[name].title, entry.formula, standing, entry.source
        try:
            parsed = parse_rule(text, model.main)
            plan = model.plan(parsed.guidance, RunOptions(steps))
        except ValueError as error:
            yield Listed(*told, None, None, None, str(error))
        else:
            yield Listed(*told, parsed.text, plan.cost.evaluations, plan.cost.relative)


def _shortest(name: str) -> str:
    """A rule's text with what has no usual number."""
    return EXAMPLES.get(name, name)


EXAMPLES = {  # numbers of corrections, and of rules that no usual number fits
    "apg": "apg:momentum=-0.5,radius=15,eta=0",
    "fdg": "fdg:low=0.5",
    "perp-neg": "cfg:scale=1.5,reference=1 + perp-neg",
    "rescale": "rescale:phi=0.7",
    "epsilon": "epsilon:factor=1.005",
    "gfcg": "gfcg:weight=0.5,classifier=herbarium-classifier",
}
