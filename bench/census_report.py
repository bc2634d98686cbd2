"""The report of ``segue bench census``: a census as tables for a reader, or as JSON."""

import json as json_module
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from segue.engine.device import resolve_dtype

from .cards import find_card
from .cases import BenchModel
from .census import CUDA, Census, StepCensus, Total, take_census
from .census_beside import beside_table, measured_calls
from .census_json import census_dict, changes, read_census, step_dict
from .kernel_record import COPY, KINDS, Kernel
from .predict import time_parts
from .rows import Row, read_rows

WIDTH = 160  # where the output is no terminal
MODEL_NOTE = "seconds are a model's, not measured: see bench/predict.py"


@dataclass(frozen=True)
class Report:
    """What is printed: ``top`` operations, an earlier census, result rows to put beside, and the form."""

    top: int = 12
    before: dict | None = None
    rows: list[Row] | None = None
    json: bool = False
    markdown: bool = False

    def __post_init__(self):
        if self.top < 1:
            raise ValueError(f"top must be at least 1, got {self.top}")
        if self.json and self.markdown:
            raise ValueError("choose --json or --markdown, not both")


def print_census(
    model: str, card: str, ceilings: Path | None, rule: str, batch: int, dtype: str, kernels: str, linears: str, steps: int,
    against: Path | None, beside: Path | None, **form,
) -> None:  # fmt: skip
    """Take a census and print it; ``form`` are the other fields of :class:`Report`.

    Raises ``ValueError`` for bad options before any work.
    """
    before = None if against is None else read_census(against)
    report = Report(before=before, rows=None if beside is None else read_rows(beside), **form)
    found, precision = find_card(card, ceilings), resolve_dtype(dtype, CUDA)
    found.rate(str(precision).removeprefix("torch."))
    census = take_census(BenchModel.parse(model), found, rule, batch, precision, kernels, steps, linears)
    if report.json:
        print(json_module.dumps(as_json(census, report)))
    else:
        print_tables(census, report)


def as_json(census: Census, report: Report) -> dict:
    """The census; with an earlier one what changed, with rows what was measured, in each live set."""
    made = census_dict(census)
    measured = {} if report.rows is None else measured_calls(census, report.rows)
    for step in made["live_sets"]:
        earlier = _same_branches(report.before, step["branches"])
        if earlier is not None:
            step["changes"] = [asdict(change) for change in changes(earlier, step)]
        if (row := measured.get(" + ".join(step["branches"]))) is not None:
            step["measured_seconds"] = row.value
    return made


def _same_branches(before: dict | None, branches: list[str]) -> dict | None:
    """The live set of an earlier census that has these branches."""
    return next((step for step in (before or {"live_sets": []})["live_sets"] if step["branches"] == branches), None)


def print_tables(census: Census, report: Report) -> None:
    """The tables, and the lines around them."""
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    tables: list[Table | str] = [live_set_table(census)]
    if report.before is None:
        tables += [kind_table(census), operation_table(census, report.top)]
    else:
        tables += against_tables(report.before, census)
    if report.rows is not None:
        tables.append(beside_table(census, report.rows))
    for line in heading(census):
        say(line)
    for table in tables:
        if isinstance(table, Table):
            say(f"\n{table.title}\n" if report.markdown else f"\n{table.title}")
            table.title, table.box = None, MARKDOWN if report.markdown else table.box
            console.print(table)
        else:
            say(f"\n{table}")
    for line in ("", *conclusion(census), *census.selection.explain()):
        say(line)


def heading(census: Census) -> list[str]:
    card, calls = census.card, sum(step.calls for step in census.steps)
    rate = card.rate(census.dtype) / 1e12
    linears = "" if census.linears == "native" else f", {census.linears} linears"
    return [
        f"{census.model}, batch {census.batch}, {census.dtype}{linears}, {calls} calls under {census.rule}",
        f"card {card.name}: {rate:.0f} TFLOP/s, {card.copy / 1e12:.2f} TB/s ({card.source}); {MODEL_NOTE}",
    ]


def _table(title: str, *columns: str, left: tuple[int, ...] = (0,)) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in left else "right", overflow="fold")
    return table


def live_name(step: StepCensus) -> str:
    return " + ".join(step.branches) or "none: the velocity is zero"


def live_set_table(census: Census) -> Table:
    """One row for each live set, and one for the whole run."""
    table = _table("One step", "live branches", "calls", "kernels", *KINDS, "copies", "TFLOP", "GB", "ms", "TFLOP/s")
    for step in census.steps:
        total = step.total()
        kinds = {kind: part.kernels for (kind,), part in step.groups("kind").items()}
        counted = [str(kinds.get(kind, 0)) for kind in KINDS]
        table.add_row(live_name(step), str(step.calls), str(total.kernels), *counted, str(step.copies), *_amounts(total))
    run = run_total(census)
    blank = [""] * (len(KINDS) + 1)
    table.add_row("the run", str(sum(step.calls for step in census.steps)), str(run.kernels), *blank, *_amounts(run))
    return table


def _amounts(total: Total) -> tuple[str, str, str, str]:
    rate = total.flops / total.seconds / 1e12 if total.seconds else 0.0
    return f"{total.flops / 1e12:.3f}", f"{total.bytes / 1e9:.2f}", f"{total.seconds * 1e3:.3f}", f"{rate:.0f}"


def run_total(census: Census) -> Total:
    """All kernels of a run."""
    total = Total()
    for step in census.steps:
        total += scaled(step.total(), step.calls)
    return total


def scaled(total: Total, calls: int) -> Total:
    return Total(*(calls * value for value in total.values()))


def kind_table(census: Census) -> Table:
    """Where the time of each live set goes, and of the run: the slowest kind first."""
    names = [live_name(step) for step in census.steps]
    table = _table("Predicted ms by kind, and share", "kind", *names, "the run")
    shares = [{kind: total.seconds for (kind,), total in step.groups("kind").items()} for step in census.steps]
    run = {
        kind: sum(step.calls * share.get(kind, 0.0) for step, share in zip(census.steps, shares, strict=True))
        for kind in (*KINDS, COPY)
    }
    order = sorted(run, key=lambda kind: -run[kind] or -shares[0].get(kind, 0.0))
    for kind in order:
        table.add_row(kind, *(_share(kind, share) for share in (*shares, run)))
    return table


def _share(kind: str, seconds: dict[str, float]) -> str:
    whole, part = sum(seconds.values()), seconds.get(kind, 0.0)
    return f"{part * 1e3:.3f}  {part / whole:6.1%}" if whole else ""


def run_kernels(census: Census) -> dict[Kernel, int]:
    """How often each kernel runs in a run."""
    counts: dict[Kernel, int] = {}
    for step in census.steps:
        for kernel, count in step.kernels.items():
            counts[kernel] = counts.get(kernel, 0) + step.calls * count
    return {kernel: count for kernel, count in counts.items() if count}


def operation_table(census: Census, top: int) -> Table:
    """The operations that take most of a run, and what bounds each."""
    table = _table(
        "The slowest operations of the run",
        "operation",
        "sizes",
        "times",
        "us each",
        "share",
        "mostly",
        "rate",
        left=(0, 1, 5),
    )
    counts, seconds = run_kernels(census), census.kernel_seconds
    for kernel in sorted(counts, key=lambda kernel: -counts[kernel] * seconds(kernel))[:top]:
        each = seconds(kernel)
        share = f"{counts[kernel] * each / census.seconds:.1%}"
        rate = f"{kernel.flops / each / 1e12:.0f} TFLOP/s" if kernel.flops else f"{kernel.bytes / each / 1e12:.2f} TB/s"
        parts = time_parts(kernel, census.card)
        limit = max(parts, key=parts.get)
        table.add_row(kernel.name, kernel.sizes, str(counts[kernel]), f"{each * 1e6:.1f}", share, limit, rate)
    return table


def conclusion(census: Census) -> list[str]:
    """The next bottleneck, and what the run's time is spent on."""
    counts, seconds = run_kernels(census), census.kernel_seconds
    first = max(counts, key=lambda kernel: counts[kernel] * seconds(kernel))
    spent: dict[str, float] = {}
    for kernel, count in counts.items():
        for part, value in time_parts(kernel, census.card).items():
            spent[part] = spent.get(part, 0.0) + count * value
    shares = ", ".join(f"{part} {value / census.seconds:.0%}" for part, value in sorted(spent.items(), key=lambda x: -x[1]))
    share = counts[first] * seconds(first) / census.seconds
    return [
        f"next bottleneck: {first.name} {first.sizes}, {share:.0%} of a run of {census.seconds:.4g} s",
        f"the run's time: {shares} (idle: multiprocessors without a tile, or short of the rate of a large product)",
    ]


def against_tables(before: dict, census: Census) -> list[Table | str]:
    """For each live set what came and what went since ``before``, by operation; a sentence where nothing did."""
    made: list[Table | str] = []
    for step in census.steps:
        title, new = live_name(step), step_dict(step)
        old = _same_branches(before, new["branches"])
        if old is None:
            made.append(f"{title}: not in the earlier census")
            continue
        table = _table(_summary(title, old, new), "kind", "operation", "sizes", "before", "after", "", left=(0, 1, 2))
        for change in changes(old, new):
            difference = f"{change.after - change.before:+d}"
            table.add_row(change.kind, change.name, change.sizes, str(change.before), str(change.after), difference)
        made.append(table if table.rows else f"{table.title}: the same operations")
    return made


def _summary(title: str, old: dict, new: dict) -> str:
    """Totals of a live set before and after."""

    def count(step: dict, kind: str) -> int:
        return step["kinds"].get(kind, {}).get("kernels", 0)

    kinds = ", ".join(f"{kind} {count(old, kind)} -> {count(new, kind)}" for kind in KINDS)
    traffic = f"{old['bytes'] / 1e9:.2f} -> {new['bytes'] / 1e9:.2f} GB"
    seconds = f"{old['seconds'] * 1e3:.3f} -> {new['seconds'] * 1e3:.3f} ms"
    return f"{title}: {old['kernels']} -> {new['kernels']} kernels ({kinds}), {traffic}, {seconds}"
