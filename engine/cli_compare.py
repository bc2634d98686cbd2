"""``segue compare``: the same pictures by several rules on one sheet, with what each rule costs."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .cli_options import DEFAULT_MODEL, Output, RunOptions, Source
from .cli_sample import check_output
from .cli_session import captions, choose_samples, class_title, draw, make_plan, open_engine, print_warnings, warm_up
from .files import whole_file
from .images import save_png
from .plan import Plan
from .plan_text import plan_dict
from .presets import ParsedRule, parse_rule
from .provenance import Origin
from .sheets import Row, labelled_sheet

DEFAULT_RULES = ("none", "cfg", "slg", "sgg")
DEFAULT_SHEET = Path("out/compare.png")
MOST_PICTURES = 12  # in a row where no classes are chosen


def compare_rules(rules: Sequence[str] | None, source: Source, run: RunOptions, output: Output) -> None:
    """Check everything, draw row by row, then write the sheet and a JSON file of the same name."""
    began = time.perf_counter()
    out, folder = check_output(output, DEFAULT_SHEET)
    if folder:
        raise ValueError(f"a comparison is one PNG file, got {out}")
    engine = open_engine(source)
    parsed = [parse_rule(rule, engine.spec) for rule in rules or DEFAULT_RULES]
    plans = [make_plan(engine, rule, run) for rule in parsed]
    labels, seeds = choose_samples(engine.spec, run, MOST_PICTURES)
    for rule, plan in zip(parsed, plans, strict=True):
        print_warnings(plan, rule)
    rows, entries = [], []
    for rule, plan in zip(parsed, plans, strict=True):
        warm_up(engine, plan, labels, seeds, run.max_batch)
        images, seconds = draw(engine, plan, labels, seeds, run.max_batch, bool(run.check_finite), rule.title)
        cost = plan.cost
        measure = f"{cost.evaluations} evaluations per picture  |  {cost.relative:.2f}x unguided  |  {seconds:.1f} s"
        rows.append(Row(rule.title, images, rule.summary, measure))
        entries.append({"rule": rule.text, "title": rule.title, "seconds": round(seconds, 3), "plan": plan_dict(plan)})
    headers = captions(engine.spec, labels, seeds)
    sheet = labelled_sheet(rows, output.zoom, headers, _title(plans[0], labels, seeds))
    total = time.perf_counter() - began
    origin = Origin.of(engine, source.model or DEFAULT_MODEL, source.family)
    record = {"origin": vars(origin), "labels": labels, "seeds": seeds, "total_seconds": round(total, 3), "rules": entries}
    out.parent.mkdir(parents=True, exist_ok=True)
    brief = {"sheet": record | {"rules": [entry["rule"] for entry in entries]}}
    save_png(sheet, out, " | ".join(rule.text for rule in parsed), brief)
    beside = out.with_suffix(".json")
    with whole_file(beside) as part:
        part.write_text(json.dumps(record) + "\n")
    if output.json:
        print(json.dumps({"files": [str(out), str(beside)]} | record))
        return
    _print_table(parsed, plans, entries)
    print(f"{len(labels)} pictures by {len(parsed)} rules in {total:.1f} s, in {out} and {beside}")


def _title(plan: Plan, labels: Sequence[int], seeds: Sequence[int]) -> str:
    model = plan.spec.name if len(set(labels)) > 1 else f"{plan.spec.name}, {class_title(plan.spec, labels[0])}"
    spread = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    schedule = f"{plan.schedule.steps} steps, {plan.solver.name} solver, {plan.schedule.name} schedule"
    return f"{model}  |  {schedule}  |  {spread}  |  the same noise in every row"


def _print_table(rules: Sequence[ParsedRule], plans: Sequence[Plan], entries: Sequence[dict]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("rule", "evaluations", "FLOPs / unguided", "seconds"):
        table.add_column(heading, justify="left" if heading == "rule" else "right", overflow="fold")
    for rule, plan, entry in zip(rules, plans, entries, strict=True):
        table.add_row(rule.text, str(plan.cost.evaluations), f"{plan.cost.relative:.2f}", f"{entry['seconds']:.2f}")
    Console().print(table)
