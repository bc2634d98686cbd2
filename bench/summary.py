"""What a device's rows say in short: a few tables of one line per model, for the head of its part of the report.

Two of them are also the README's.
"""

import re
from typing import Any

from .rows import Row
from .tables import ALONE_GAIN, ERROR, GAIN, GUIDED, markdown_table, select, spread

ATTENTION = "attention, "  # how its cases in the suite of kernels begin
_BESIDE = re.compile(r"(?P<kind>speed-up over|time relative to) (?P<peer>.+) (?P<rule>none|cfg|sgg)(?: as published)?")
_BESIDE_COLUMNS = {
    ("speed-up over", "none"): "unguided, speed-up",
    ("speed-up over", "cfg"): "CFG, speed-up",
    ("speed-up over", "sgg"): "SGG, speed-up",
    ("time relative to", "cfg"): "SGG here / peer's CFG, time",
    ("time relative to", "none"): "SGG here / peer's unguided, time",
}


def summary_tables(rows: list[Row]) -> str:
    """All tables of one device and precision."""
    absolute = (speed_summary(rows), attention_summary(rows))
    relative = (cost_summary(rows), beside_summary(rows), waterfall_summary(rows), alone_summary(rows))
    return "\n\n".join(table for table in (*absolute, *relative) if table)


def on_card(row: Row) -> bool:
    """Whether a row was measured on a GPU: only there are seconds a figure of the code and not of the machine's load."""
    return "cuda" in row.versions


def _is_attention(row: Row) -> bool:
    return row.suite == "kernels" and row.case.startswith(ATTENTION) and on_card(row)


def speed_summary(rows: list[Row]) -> str:
    """One line per model and variant on a GPU: seconds of a batch, TFLOP/s of what the plan counts, and their share."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in filter(on_card, select(rows, "e2e")):
        found.setdefault((row.case, row.variant), {})[row.metric] = row
    lines = []
    for (case, variant), metrics in found.items():
        if latency := metrics.get("latency of a batch"):
            lines.append([case, variant, spread(latency), *_rate_cells(metrics.get("effective rate")), str(latency.n)])
    return markdown_table(("case", "variant", "seconds", "TFLOP/s", "of a large product", "rounds"), lines)


def attention_summary(rows: list[Row]) -> str:
    """One line per size and implementation of attention on a GPU: microseconds of a launch, TFLOP/s and their share."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in filter(_is_attention, rows):
        found.setdefault((row.case.removeprefix(ATTENTION), row.variant), {})[row.metric] = row
    lines = []
    for (case, variant), metrics in found.items():
        if time := metrics.get("time of a launch"):
            lines.append([case, variant, f"{1e6 * time.value:.3g}", *_rate_cells(metrics.get("rate")), str(time.n)])
    return markdown_table(("attention", "implementation", "microseconds", "TFLOP/s", "of a large product", "rounds"), lines)


def _rate_cells(rate: Row | None) -> list[str]:
    """A rate and its share of the ceiling measured in the same run."""
    if rate is None:
        return ["-", "-"]
    return [f"{rate.value:.3g}", f"{rate.value / rate.expected:.0%}" if rate.expected else "-"]


def cost_summary(rows: list[Row]) -> str:
    """One line per model: time relative to unguided under every rule, with the plan's figure, and the gain."""
    gains = {row.case: row for row in select(rows, "cost", GAIN)}
    by_case: dict[str, dict[str, Row]] = {}
    for row in select(rows, "cost", GUIDED):
        by_case.setdefault(row.case, {})[row.variant] = row
    rules = list(dict.fromkeys(variant for variants in by_case.values() for variant in variants))
    lines = []
    for case, variants in by_case.items():
        cells = [f"{variants[r].value:.2f} ({variants[r].expected:.2f})" if r in variants else "-" for r in rules]
        lines.append([case, *cells, f"{spread(gains[case])}x" if case in gains else "-", rounds(variants)])
    return markdown_table(("time / unguided (by the plan)", *rules, "SGG over the published algorithm", "rounds"), lines)


def rounds(found: dict[Any, Row]) -> str:
    """How many rounds the rows of a line were measured in."""
    return "/".join(dict.fromkeys(str(row.n) for row in found.values()))


def beside_summary(rows: list[Row]) -> str:
    """One line per model and peer: speed-up under the same rule, and SGG against the peer's CFG and unguided sampling."""
    lines: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in select(rows, "e2e"):
        match = _BESIDE.fullmatch(row.metric)
        if match and match["peer"] != "segue":
            case = row.case.rpartition(", ")[0]  # without the group of peers, which the name of the peer tells
            lines.setdefault((match["peer"], case), {})[match["kind"], match["rule"]] = row
    cells = [
        [peer, case, *(f"{spread(found[column])}x" if column in found else "-" for column in _BESIDE_COLUMNS), rounds(found)]
        for (peer, case), found in lines.items()
    ]
    return markdown_table(("beside", "case", *_BESIDE_COLUMNS.values(), "rounds"), cells)


def waterfall_summary(rows: list[Row]) -> str:
    """Stage by stage from the published algorithm to the engine, with the error of the stages that are approximations."""
    errors = {(row.case, row.variant): row for row in select(rows, "step", ERROR)}
    lines = []
    for row in select(rows, "step", GAIN):
        error = errors.get((row.case, row.variant))
        counted = f"{row.expected:.2f}x" if row.expected else "-"
        lines.append(
            [row.case, row.variant, f"{spread(row)}x", counted, f"{error.value:.2g}" if error else "exact", str(row.n)]
        )
    header = ("case", "stage", "speed-up over the published algorithm", "by counting", "error of a run", "rounds")
    return markdown_table(header, lines)


def alone_summary(rows: list[Row]) -> str:
    """Each approximation by itself beside the exact engine: its gain and its error."""
    errors = {(row.case, row.variant): row for row in select(rows, "step", ERROR)}
    lines = []
    for row in select(rows, "step", ALONE_GAIN):
        error = errors.get((row.case, row.variant))
        lines.append([row.case, row.variant, f"{spread(row)}x", f"{error.value:.2g}" if error else "-", str(row.n)])
    return markdown_table(("case", "approximation", ALONE_GAIN, "error of a run", "rounds"), lines)
