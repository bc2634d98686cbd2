"""Measured beside predicted: the rows of the suite ``step`` against a census, live set by live set.

``python -m segue.bench.census_beside FILE`` writes the tables of a result file.
"""

import re
import sys
from io import StringIO
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from .cards import card_of
from .cases import BenchModel
from .census import Census, take_census
from .rows import Row, read_rows
from .suites import step as step_suite

METRIC = "time of a call"
WIDTH = 160
_CASE = re.compile(r"(?P<model>\S+) batch (?P<batch>\d+), (?P<calls>\d+) calls, (?P<rule>.+)")


def beside_table(census: Census, rows: list[Row]) -> Table:
    """One row for each live set that was measured.  Raises ``ValueError`` where ``rows`` hold none of the census's."""
    measured = measured_calls(census, rows)
    if not measured:
        raise ValueError(
            f"the rows hold no {METRIC} of {census.model}, batch {census.batch}, {census.dtype}, {census.linears} linears, "
            f"{census.rule}; segue bench step measures it"
        )
    devices = ", ".join(dict.fromkeys(row.device for row in measured.values()))
    title = f"Measured on {devices}, beside predicted for {census.card.name}: {census.model}, batch {census.batch}"
    table = Table(title=title, title_justify="left")
    table.add_column("live branches")
    for column in ("measured ms", "p20 to p80", "predicted ms", "measured / predicted", "kernels", "TFLOP/s measured"):
        table.add_column(column, justify="right")
    for step in census.steps:
        row = measured.get(" + ".join(step.branches))
        if row is None:
            continue
        total = step.total()
        spread, rate = f"{row.p20 * 1e3:.3f} to {row.p80 * 1e3:.3f}", f"{total.flops / row.value / 1e12:.0f}"
        ratio = f"{row.value / total.seconds:.2f}"
        predicted = f"{total.seconds * 1e3:.3f}"
        table.add_row(row.variant, f"{row.value * 1e3:.3f}", spread, predicted, ratio, str(total.kernels), rate)
    return table


def measured_calls(census: Census, rows: list[Row]) -> dict[str, Row]:
    """The last row of every live set of the census's model, batch, rule and precision, by the names of its branches.

    The suite times calls with native linears.
    """
    spec = BenchModel.parse(census.model).spec
    found = {}
    for row in rows if census.linears == "native" else ():
        case = _CASE.fullmatch(row.case)
        if row.suite != step_suite.NAME or row.metric != METRIC or row.dtype != census.dtype or case is None:
            continue
        same = (int(case["batch"]), case["rule"]) == (census.batch, census.rule)
        if same and _sizes(BenchModel.parse(case["model"]).spec) == _sizes(spec):
            found[row.variant] = row
    return found


def _sizes(spec) -> dict:
    return spec.to_dict() | {"name": ""}  # one model at its own size may be written with it


def beside_text(rows: list[Row]) -> str:
    """A table for every case of the suite ``step`` that ``rows`` hold; its card has the ceilings among them, where there are.

    A case that no census can be taken of is named with the reason.
    """
    console = Console(file=StringIO(), width=WIDTH)
    timed = [row for row in rows if row.suite == step_suite.NAME and row.metric == METRIC]
    for case, dtype, device in dict.fromkeys((row.case, row.dtype, row.device) for row in timed):
        own, parts = [row for row in rows if row.device == device], _CASE.fullmatch(case)
        try:
            if parts is None:
                raise ValueError("its name does not tell model, batch, calls and rule")
            model, card = BenchModel.parse(parts["model"]), card_of(device, own)
            options = parts["rule"], int(parts["batch"]), getattr(torch, dtype), "auto", int(parts["calls"])
            console.print(beside_table(take_census(model, card, *options), own))
        except ValueError as error:
            console.print(f"{case}, {dtype}: no census, {error}", highlight=False, markup=False, soft_wrap=True)
    return console.file.getvalue()


if __name__ == "__main__":
    print(beside_text(read_rows(Path(sys.argv[1]))), end="")
