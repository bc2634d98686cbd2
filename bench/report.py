"""From result rows to a report: Markdown tables and plots, and the blocks of a document between their markers."""

from collections.abc import Callable
from pathlib import Path

from .load.tables import load_tables
from .plots import write_plots
from .quality.tables import quality_tables
from .readme_block import update_document
from .rows import Row, latest, read_rows
from .summary import summary_tables
from .tables import (
    by_device,
    cold_tables,
    cost_tables,
    e2e_tables,
    kernel_tables,
    provenance,
    scaling_tables,
    step_tables,
)

SECTIONS: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "summary": ("In short", summary_tables),
    "cost": ("Guided over unguided time", cost_tables),
    "e2e": ("Whole batches", e2e_tables),
    "step": ("One call, and the waterfall", step_tables),
    "kernels": ("Operations", kernel_tables),
    "cold": ("Cold start", cold_tables),
    "scaling": ("Scaling", scaling_tables),
    "serve": ("Under load", load_tables),
    "quality": ("Quality", quality_tables),
}


def report_text(rows: list[Row]) -> str:
    """The whole report: per device and precision a summary and one section per suite; medians (20th-80th percentile)."""
    parts = ["# Measurements", "Medians with the 20th to 80th percentile. Ratios are formed inside interleaved rounds."]
    for (device, dtype), here in by_device(rows).items():
        made = [(title, tables(here)) for title, tables in SECTIONS.values()]
        if any(text for _, text in made):
            parts += [f"## {device}, {dtype}", provenance(here)]
            parts += [part for title, text in made if text for part in (f"### {title}", text)]
    return "\n\n".join(parts) + "\n"


def write_report(results: list[Path], out: Path, readme: Path | None = None) -> list[Path]:
    """Write ``report.md`` and the plots into ``out`` and update the document ``readme``; returns what was written.

    Raises ``ValueError`` for missing files, files without rows, and a document without markers, before writing.
    """
    rows = latest([row for path in results for row in read_rows(path)])
    if not rows:
        raise ValueError(f"there are no result rows in {', '.join(map(str, results)) or 'bench/results'}")
    updated = update_document(readme.read_text(encoding="utf-8"), rows, str(readme)) if readme else None
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
