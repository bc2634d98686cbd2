"""``segue compare``: the same pictures by several rules on one sheet, with what each rule costs."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from ..files import NewFiles, refuse_existing
from ..images import save_png
from ..planning.plan import Plan
from ..records.provenance import SHEET
from ..rules.batch import ParsedRules, parse_rules
from ..rules.presets import ParsedRule, calibrated_rule
from .jobs import Job, captions, name_of, open_job
from .options import UNGUIDED, Output, PromptOptions, RunOptions, Source
from .sample import check_output, counted, print_numbered
from .session import print_warnings
from .sheets import Row, default_zoom, labelled_sheet

DEFAULT_RULES = ("none", "cfg", "slg", "sgg")
DEFAULT_SHEET = Path("out/compare.png")
MOST_SEEDS = 8  # named one by one
MOST_PICTURES = 12  # in a row where no classes are chosen


def compare_rules(
    rules: Sequence[str] | None,
    source: Source,
    run: RunOptions,
    output: Output,
    text: PromptOptions,
    calibration: str | None = None,
) -> None:
    """Check everything, draw row by row, then write the sheet and a JSON file of the same name."""
    began = time.perf_counter()
    out, folder = check_output(output, DEFAULT_SHEET)
    if folder:
        raise ValueError(f"a comparison is one PNG file, got {out}")
    if output.out is not None and not output.force:
        refuse_existing(out.with_suffix(".json"))
    job = open_job(replace(source, adapter=None, adapter_scale=None), run, text, MOST_PICTURES)
    jobs = [(job, parse_rules(rule, job.spec)) for rule in rules or DEFAULT_RULES]
    if calibration is not None:
        jobs.append((job, calibrated_rule(calibration)))
    if source.adapter is not None:
        adapted = open_job(source, run, text, MOST_PICTURES)
        jobs.append((adapted, parse_rules(UNGUIDED, adapted.spec)))
    elif source.adapter_scale is not None:
        raise ValueError(f"--adapter-scale {source.adapter_scale:g} is of an adapter: give --adapter")
    plans = [of_rule.plan(rule, run) for of_rule, rule in jobs]
    for (_, rule), plan in zip(jobs, plans, strict=True):
        print_warnings(plan, rule)
    rows, entries, plan, origin = [], [], plans[0], None
    for (of_rule, rule), planned in zip(jobs, plans, strict=True):
        if of_rule is not job:
            origin = vars(job.origin())
            job.release()
        of_rule.warm_up(planned)
        entry: dict[str, Any] = {"rule": rule.text, "title": rule.title}
        if (told := of_rule.engine.adapted) is not None:
            entry |= {"title": told.title, "summary": told.rule, "origin": vars(of_rule.origin())}
        images, seconds, plan, _ = of_rule.draw(planned, bool(run.check_finite), entry["title"])
        entry |= {"seconds": round(seconds, 3), "plan": plan.to_dict()}
        rows.append(sheet_row(rule, images, plan, entry))
        entries.append(entry)
    zoom = output.zoom or default_zoom(rows[0].images[0])
    total = time.perf_counter() - began
    record = {"origin": origin or vars(job.origin()), "labels": job.labels, "seeds": job.seeds} | job.texts()
    record |= {"max_batch": job.max_batch or len(job.labels), "zoom": zoom}
    record |= {"total_seconds": round(total, 3), "rules": entries}
    new = NewFiles(output.force)
    out, beside = write_sheet(new, out, draw_sheet(job, rows, plan, zoom), record)
    print_numbered(new)
    if output.json:
        print(json.dumps({"files": [str(out), str(beside)]} | record))
        return
    _print_table(entries)
    pictures, rules = counted(len(job.labels), "picture"), counted(len(jobs), "rule")
    print(f"{pictures} by {rules} in {total:.1f} s, in {out} and {beside}")


def sheet_row(rule: ParsedRule | ParsedRules, images: Sequence[Image.Image], plan: Plan, entry: Mapping[str, Any]) -> Row:
    """The row of one rule, or of an adapter: its pictures, and what they cost; ``entry`` is what the record says of it."""
    cost = plan.cost
    measure = f"{cost.evaluations} evaluations per picture  |  {cost.relative:.2f}x unguided  |  {entry['seconds']:.1f} s"
    return Row(entry["title"], images, entry.get("summary", rule.summary), measure)


def draw_sheet(job: Job, rows: Sequence[Row], plan: Plan, zoom: int) -> Image.Image:
    """The rows under one title; ``plan`` is that of any of them, whose steps are those of all."""
    return labelled_sheet(rows, zoom, captions(job.names, job.labels, job.seeds), _title(job, plan))


def write_sheet(new: NewFiles, out: Path, sheet: Image.Image, record: dict) -> list[Path]:
    """The sheet as PNG with its record, and the same as JSON beside it."""
    rules = " | ".join(entry["rule"] for entry in record["rules"])
    return new.write_together(
        {
            out: lambda path: save_png(sheet, path, rules, {SHEET: record}),
            out.with_suffix(".json"): lambda path: path.write_text(json.dumps(record) + "\n"),
        }
    )


def _title(job: Job, plan: Plan) -> str:
    spec, seeds = job.spec, job.seeds
    model = spec.name if len(set(job.labels)) > 1 else f"{spec.name}, {name_of(job.names, job.labels[0])}"
    spread = seeds_text(seeds)
    schedule = f"{plan.schedule.steps} steps, {plan.solver.name} solver, {plan.schedule.name} schedule"
    return f"{model}  |  {schedule}  |  {spread}  |  the same noise in every row"


def seeds_text(seeds: Sequence[int]) -> str:
    """``seed 3``, ``seeds 3 to 7`` where they count up, else each that is there, or how many where they are many."""
    if len(set(seeds)) == 1:
        return f"seed {seeds[0]}"
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}" if len(seeds) <= MOST_SEEDS else f"{len(seeds)} seeds"


def _print_table(entries: Sequence[dict]) -> None:
    """Narrow enough for the rules of published numbers on a terminal of 80 columns."""
    table = Table(box=None, pad_edge=False)
    for heading in ("rule", "evals", "cost", "seconds"):
        table.add_column(heading, justify="left" if heading == "rule" else "right", overflow="fold")
    for entry in entries:
        cost = entry["plan"]["cost"]
        name = entry["title"] if "origin" in entry else entry["rule"]
        table.add_row(name, str(cost["evaluations"]), f"{cost['relative']:.2f}x", f"{entry['seconds']:.2f}")
    Console().print(table)
