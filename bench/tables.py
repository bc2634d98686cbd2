"""Result rows as Markdown tables, one function per suite.  Every figure of a table is a figure of a row."""

from collections.abc import Iterable

from .rows import Row

GUIDED, GAIN = "cost relative to unguided", "speed-up over the published algorithm"
ERROR = "error of a run"
ALONE_GAIN = "speed-up over the exact engine"


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


def by_device(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by device and precision, in order of first appearance."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.device, row.dtype), []).append(row)
    return found


def provenance(rows: list[Row]) -> str:
    """Where and with what rows were made: one sentence for every set of versions and threads."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        packages = ", ".join(f"{name} {value}" for name, value in sorted(row.versions.items()))
        found.setdefault(f"{row.threads} threads, {packages}", []).append(row)
    sentences = []
    for made_with, group in found.items():
        commits = ", ".join(dict.fromkeys(row.commit for row in group))
        dates = sorted({row.date[:10] for row in group})
        sentences.append(f"{made_with}; commit {commits}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.")
    return " ".join(sentences)


def legend(rows: list[Row]) -> str:
    """What was run under each name, from the notes of the rows."""
    lines = dict.fromkeys((row.variant, row.note) for row in rows if row.note and row.unit != "x")
    return markdown_table(("variant", "what was run"), lines)


def cost_tables(rows: list[Row]) -> str:
    """Guided over unguided, measured against planned, and the gain over the published algorithm."""
    gains = {row.case: row for row in select(rows, "cost", GAIN)}
    lines = []
    for row in select(rows, "cost", GUIDED):
        deviation = f"{row.value / row.expected - 1:+.1%}" if row.expected else ""
        gain = spread(gains[row.case]) + "x" if row.variant == "sgg" and row.case in gains else ""
        lines.append([row.case, row.variant, str(row.n), f"{spread(row)}x", f"{row.expected:.3f}x", deviation, gain])
    header = ("case", "rule", "n", "measured / unguided", "plan", "deviation", "speed-up over the published algorithm")
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
            latency, images = metrics["latency of a batch"], f"{metrics['throughput'].value:.3g}"
            share = f"{latency.expected / latency.value:.0%}" if latency.expected else ""
            lines.append([case, variant, str(latency.n), spread(latency), images, share, "; ".join(extra)])
        ratios += [[case, variant, row.metric, f"{spread(row)}x"] for row in metrics.values() if row.unit == "x"]
    tables = [
        markdown_table(("case", "variant", "n", "latency, s", "images/s", "of the roofline", "resources"), lines),
        markdown_table(("case", "variant", "against", "ratio"), ratios),
        legend(select(rows, "e2e")),
    ]
    return "\n\n".join(table for table in tables if table)


def step_tables(rows: list[Row]) -> str:
    """One call by live set, then the waterfall, then what its approximations change."""
    calls = [
        [row.case, row.variant, str(row.n), f"{spread(row)}x", f"{row.expected:.3f}x"]
        for row in select(rows, "step", "cost relative to an unguided call")
    ]
    times = {(row.case, row.variant): row for row in select(rows, "step", "time of a run")}
    falls = [
        [row.case, row.variant, str(row.n), spread(times[row.case, row.variant]), f"{spread(row)}x", _expected(row)]
        for row in select(rows, "step", GAIN)
    ]
    alone = [
        [row.case, row.variant, str(row.n), spread(times[row.case, row.variant]), f"{spread(row)}x"]
        for row in select(rows, "step", ALONE_GAIN)
    ]
    errors = [
        [row.case, row.variant, row.metric, f"{row.value:.3g}"]
        for row in select(rows, "step")
        if row.metric.startswith("error")
    ]
    tables = [
        markdown_table(("case", "live branches", "n", "measured / unguided call", "plan"), calls),
        markdown_table(("case", "stage", "n", "time, s", "speed-up", "by counting"), falls),
        markdown_table(("case", "alone", "n", "time, s", ALONE_GAIN), alone),
        markdown_table(("case", "approximation", "error", "relative"), errors),
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
    lines = [[row.case, row.variant, row.metric, str(row.n), f"{spread(row)} s"] for row in select(rows, "cold")]
    return markdown_table(("case", "variant", "stage", "n", "time"), lines)


def scaling_tables(rows: list[Row]) -> str:
    """Fitted exponents beside those of the FLOPs, then cost at every point."""
    fits = [
        [row.case, row.variant, str(row.n), spread(row), f"{row.expected:.3f}"]
        for row in select(rows, "scaling")
        if row.metric.startswith("exponent") and row.expected is not None
    ]
    points = [[row.case, row.variant, str(row.n), f"{spread(row)}x", _expected(row)] for row in select(rows, "scaling", GUIDED)]
    tables = [
        markdown_table(("case", "rule", "n", "exponent", "of the FLOPs"), fits),
        markdown_table(("case", "point", "n", "measured / unguided", "plan"), points),
    ]
    return "\n\n".join(table for table in tables if table)
