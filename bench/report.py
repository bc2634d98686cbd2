"""From result rows to Markdown tables, plots, and the block of the README between its markers."""

from collections.abc import Callable, Iterable
from pathlib import Path

from .plots import write_plots
from .rows import Row, latest, read_rows

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
GUIDED, GAIN = "cost relative to unguided", "speed-up over the published algorithm"


def markdown_table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table; an empty one is an empty string."""
    lines = [list(line) for line in lines]
    if not lines:
        return ""
    header = list(header)
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def spread(row: Row, digits: int = 3) -> str:
    """A value with its 20th to 80th percentile, without the unit."""
    return f"{row.value:.{digits}g} ({row.p20:.{digits}g}-{row.p80:.{digits}g})"


def select(rows: list[Row], suite: str, metric: str | None = None) -> list[Row]:
    """Rows of one suite, and of one metric where given."""
    return [row for row in rows if row.suite == suite and metric in (None, row.metric)]


def cost_tables(rows: list[Row]) -> str:
    """Guided over unguided, measured against planned, and the gain over the published algorithm."""
    gains = {row.case: row for row in select(rows, "cost", GAIN)}
    lines = []
    for row in select(rows, "cost", GUIDED):
        deviation = f"{row.value / row.expected - 1:+.1%}" if row.expected else ""
        gain = spread(gains[row.case]) + "x" if row.variant == "sgg" and row.case in gains else ""
        lines.append([row.case, row.variant, f"{spread(row)}x", f"{row.expected:.3f}x", deviation, gain])
    header = ("case", "rule", "measured / unguided", "plan", "deviation", "speed-up over the published algorithm")
    return markdown_table(header, lines)


def e2e_tables(rows: list[Row]) -> str:
    """Latency, throughput and resources of every variant, then the ratios."""
    units = {"peak device memory": "GiB", "working memory": "GiB", "energy per image": "J", "effective rate": "TFLOP/s"}
    by_key: dict[tuple[str, str], dict[str, Row]] = {}
    for row in select(rows, "e2e"):
        by_key.setdefault((row.case, row.variant), {})[row.metric] = row
    lines, ratios = [], []
    for (case, variant), metrics in by_key.items():
        if "latency of a batch" in metrics:
            extra = [f"{metric} {metrics[metric].value:.3g} {unit}" for metric, unit in units.items() if metric in metrics]
            images = f"{metrics['throughput'].value:.3g}"
            lines.append([case, variant, spread(metrics["latency of a batch"]), images, "; ".join(extra)])
        ratios += [[case, variant, row.metric, f"{spread(row)}x"] for row in metrics.values() if row.unit == "x"]
    tables = [
        markdown_table(("case", "variant", "latency, s", "images/s", "resources"), lines),
        markdown_table(("case", "variant", "against", "ratio"), ratios),
    ]
    return "\n\n".join(table for table in tables if table)


def step_tables(rows: list[Row]) -> str:
    """One call by live set, then the waterfall."""
    calls = [
        [row.case, row.variant, f"{spread(row)}x", f"{row.expected:.3f}x"]
        for row in select(rows, "step", "cost relative to an unguided call")
    ]
    times = {(row.case, row.variant): row for row in select(rows, "step", "time of a run")}
    falls = [
        [row.case, row.variant, spread(times[row.case, row.variant]), f"{spread(row)}x", _expected(row)]
        for row in select(rows, "step", GAIN)
    ]
    tables = [
        markdown_table(("case", "live branches", "measured / unguided call", "plan"), calls),
        markdown_table(("case", "stage", "time, s", "speed-up", "by counting"), falls),
    ]
    return "\n\n".join(table for table in tables if table)


def _expected(row: Row) -> str:
    return f"{row.expected:.3f}x" if row.expected else ""


def kernel_tables(rows: list[Row]) -> str:
    """Rate of every operation beside the ceiling it is judged by."""
    lines = []
    for row in select(rows, "kernels"):
        if row.unit in ("TB/s", "TFLOP/s"):
            share = f"{row.value / row.expected:.0%}" if row.expected else "ceiling"
            lines.append([row.case, row.variant, f"{spread(row)} {row.unit}", share])
    return markdown_table(("operation", "implementation", "rate", "of the measured ceiling"), lines)


def cold_tables(rows: list[Row]) -> str:
    """Stages of a cold start."""
    lines = [[row.case, row.variant, row.metric, f"{spread(row)} s"] for row in select(rows, "cold")]
    return markdown_table(("case", "variant", "stage", "time"), lines)


def scaling_tables(rows: list[Row]) -> str:
    """Fitted exponents beside those of the FLOPs, then cost at every point."""
    fits = [
        [row.case, row.variant, spread(row), f"{row.expected:.3f}"]
        for row in select(rows, "scaling")
        if row.metric.startswith("exponent") and row.expected is not None
    ]
    points = [[row.case, row.variant, f"{spread(row)}x", _expected(row)] for row in select(rows, "scaling", GUIDED)]
    tables = [
        markdown_table(("case", "rule", "exponent", "of the FLOPs"), fits),
        markdown_table(("case", "point", "measured / unguided", "plan"), points),
    ]
    return "\n\n".join(table for table in tables if table)


SECTIONS: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "cost": ("Guided over unguided time", cost_tables),
    "e2e": ("Whole batches", e2e_tables),
    "step": ("One call, and the waterfall", step_tables),
    "kernels": ("Operations", kernel_tables),
    "cold": ("Cold start", cold_tables),
    "scaling": ("Scaling", scaling_tables),
}


def provenance(rows: list[Row]) -> str:
    """One line on where and with what rows were made."""
    versions = {name: value for row in rows for name, value in row.versions.items()}
    packages = ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
    commits = ", ".join(dict.fromkeys(row.commit for row in rows))
    threads = "/".join(dict.fromkeys(str(row.threads) for row in rows))
    return f"{threads} threads, {packages}; commit {commits}; {min(row.date for row in rows)[:10]}."


def report_text(rows: list[Row]) -> str:
    """The whole report: per device and precision, one section per suite.  Values are medians (20th-80th percentile)."""
    parts = ["# Measurements", "Medians with the 20th to 80th percentile. Ratios are formed inside interleaved rounds."]
    for device, dtype in dict.fromkeys((row.device, row.dtype) for row in rows):
        here = [row for row in rows if (row.device, row.dtype) == (device, dtype)]
        parts += [f"## {device}, {dtype}", provenance(here)]
        for title, tables in SECTIONS.values():
            text = tables(here)
            if text:
                parts += [f"### {title}", text]
    return "\n\n".join(parts) + "\n"


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
        lines.append([case, *cells, f"{spread(gains[case])}x" if case in gains else "-"])
    return markdown_table(("time / unguided (by the plan)", *rules, "SGG over the published algorithm"), lines)


def readme_block(rows: list[Row]) -> str:
    """What the README shows: the cost of every rule, and Segue beside what people run today."""
    parts = [BEGIN]
    for device, dtype in dict.fromkeys((row.device, row.dtype) for row in rows if row.suite in ("cost", "e2e")):
        here = [row for row in rows if (row.device, row.dtype) == (device, dtype) and row.suite in ("cost", "e2e")]
        ratios = [[row.case, row.variant, row.metric, f"{spread(row)}x"] for row in select(here, "e2e") if row.unit == "x"]
        tables = [cost_summary(here), markdown_table(("case", "variant", "against", "ratio"), ratios)]
        parts += [f"**{device}, {dtype}.** {provenance(here)}", *(table for table in tables if table)]
    return "\n\n".join([*parts, END])


def update_block(text: str, block: str, name: str) -> str:
    """``text`` with what lies between the bench markers replaced; raises ``ValueError`` unless there is one pair."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{name} needs one pair of markers, {BEGIN} and {END}")
    return text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]


def write_report(results: list[Path], out: Path, readme: Path | None = None) -> list[Path]:
    """Write ``report.md`` and the plots into ``out`` and update the README; returns what was written.

    Raises ``ValueError`` for missing files, files without rows, and a README without markers, before writing.
    """
    rows = latest([row for path in results for row in read_rows(path)])
    if not rows:
        raise ValueError(f"there are no result rows in {', '.join(map(str, results)) or 'bench/results'}")
    updated = update_block(readme.read_text(encoding="utf-8"), readme_block(rows), str(readme)) if readme else None
    out.mkdir(parents=True, exist_ok=True)
    written = write_plots(rows, out)
    links = "".join(f"\n![{path.stem.replace('-', ' ')}]({path.name})\n" for path in written)
    report = out / "report.md"
    report.write_text(report_text(rows) + links, encoding="utf-8")
    written.append(report)
    if readme and updated is not None:
        readme.write_text(updated, encoding="utf-8")
        written.append(readme)
    return written
