"""The report of ``segue bench census``: a census as tables for a reader, or as JSON."""

import json as json_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from segue.engine.device import resolve_dtype

from .cards import find_card
from .cases import BenchModel
from .census import CUDA, Census, StepCensus, Total, take_census
from .census_beside import beside_table
from .census_json import census_dict, changes, read_census, step_dict
from .kernel_record import COPY, KINDS, Kernel
from .predict import time_parts
from .rows import read_rows

WIDTH = 128  # where the output is no terminal
MODEL_NOTE = "seconds are a model's, not measured: see bench/predict.py"


def print_census(
    model: str, card: str, ceilings: Path | None, rule: str, batch: int, dtype: str, kernels: str, steps: int,
    against: Path | None, beside: Path | None, top: int, json: bool,
) -> None:  # fmt: skip
    """Take a census and print it.  Raises ``ValueError`` for bad options before any work."""
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    found, precision = find_card(card, ceilings), resolve_dtype(dtype, CUDA)
    found.rate(str(precision).removeprefix("torch."))
    before = None if against is None else read_census(against)
    rows = None if beside is None else read_rows(beside)
    census = take_census(BenchModel.parse(model), found, rule, batch, precision, kernels, steps)
    if json:
        print(json_module.dumps(census_dict(census)))
        return
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    for line in heading(census):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if before is not None:
        for title, table in against_tables(before, census):
            console.print(table or title, highlight=False, markup=False)
        return
    tables = [live_set_table(census), kind_table(census), operation_table(census, top)]
    for table in tables + ([] if rows is None else [beside_table(census, rows)]):
        console.print(table)
    for line in (*conclusion(census), *census.selection.explain()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def heading(census: Census) -> list[str]:
    card, calls = census.card, sum(step.calls for step in census.steps)
    rate = card.rate(census.dtype) / 1e12
    return [
        f"{census.model}, batch {census.batch}, {census.dtype}, {calls} calls under {census.rule}",
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
    table.add_section()
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
    """How often each kernel runs in a run; in a step of the first live set where no call is made."""
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


def against_tables(before: dict, census: Census) -> list[tuple[str, Table | None]]:
    """For each live set what came and what went since ``before``, by operation."""
    earlier = {tuple(step["branches"]): step for step in before["live_sets"]}
    made = []
    for step in census.steps:
        title = live_name(step)
        if step.branches not in earlier:
            made.append((f"{title}: not in the earlier census", None))
            continue
        old, new = earlier[step.branches], step_dict(step)
        kinds = ", ".join(
            f"{kind} {old['kinds'].get(kind, {}).get('kernels', 0)} -> {new['kinds'].get(kind, {}).get('kernels', 0)}"
            for kind in KINDS
        )
        summary = f"{title}: {old['kernels']} -> {new['kernels']} kernels ({kinds}), {old['bytes'] / 1e9:.2f} -> "
        summary += f"{new['bytes'] / 1e9:.2f} GB, {old['seconds'] * 1e3:.3f} -> {new['seconds'] * 1e3:.3f} ms"
        table = _table(summary, "kind", "operation", "sizes", "before", "after", "", left=(0, 1, 2))
        for change in changes(old, new):
            difference = f"{change.after - change.before:+d}"
            table.add_row(change.kind, change.name, change.sizes, str(change.before), str(change.after), difference)
        made.append((f"{summary}: the same operations", table if table.rows else None))
    return made
