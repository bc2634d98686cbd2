"""``segue bench demo``: from options to a sheet, and what it shows in figures."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from segue.engine.device import resolve_device
from segue.engine.engine import Engine
from segue.engine.files import NewFiles, check_writable, refuse_existing
from segue.engine.images import save_png
from segue.engine.labels import check_labels
from segue.engine.rules.presets import parse_rule

from ..quality.commands import JUDGED, JUDGED_FROM
from ..quality.judges import named_judge
from ..quality.real_samples import HERBARIUM, fresh_leaves
from ..quality.tables import TITLES
from ..quality.trial import Trial, networks_of
from ..rows import read_rows
from .demo import LACKING, Demo, Line, default_classes
from .measured import Measured

RULES = ("none", "cfg", "slg", "exit", "sgg")


def draw_demo(
    out: Path,
    rules: Sequence[str] | None,
    classes: str | None,
    judge: str,
    scores: Path,
    device: str | None,
    zoom: int | None,
    force: bool,
) -> None:
    """Check everything, draw row by row, then write the sheet and print what it says."""
    if out.suffix != ".png":
        raise ValueError(f"the demo is a PNG file, got {out}")
    check_writable(out, folder=False)
    if not force:
        refuse_existing(out)
    where = resolve_device(device)
    engine = Engine.from_pretrained(HERBARIUM, device=where, dtype=torch.float32)
    demo = open_demo(engine, judge, scores, classes)
    texts = [parse_rule(text, engine.spec).text for text in rules or RULES]
    for text in texts:
        engine.plan(parse_rule(text, engine.spec).guidance, demo.trial.steps, solver=demo.trial.solver)
    lines = [demo.real_line(), *map(demo.line, texts)]
    record = {"demo": {"model": networks_of(engine), "judge": demo.judge.name, "labels": demo.labels, "rules": texts}}
    new = NewFiles(force)
    path = new.write(out, lambda file: save_png(demo.sheet(lines, zoom), file, demo.title(), record))
    show(demo, lines)
    print(f"wrote {path}")


def open_demo(engine: Engine, judge: str, scores: Path, classes: str | None = None) -> Demo:
    """The demo of the herbarium with the scores of a file, if it is there; refused where they are of other weights."""
    seeing = named_judge(judge, engine.device)
    measured, lacking, trial = None, "", Trial(JUDGED, first_seed=JUDGED_FROM)
    if scores.is_file():
        measured = Measured.of(read_rows(scores), networks_of(engine), seeing.name, scores)
        trial = measured.case.trial
    else:
        lacking = f"there is no {scores} here, which comes with Segue's repository and is made by segue score"
    labels = tuple(default_classes(engine.spec.parents) if classes is None else check_labels(classes, engine.spec))
    return Demo(engine, seeing, scored_leaves, trial, labels, measured, lacking)


def scored_leaves(labels: Tensor) -> Tensor:
    """The real leaf of every species that is scored first: number ``i`` is of species ``i``."""
    return fresh_leaves(labels, labels.tolist())


def show(demo: Demo, lines: Sequence[Line]) -> None:
    """Every row in figures, narrow enough for 80 columns."""
    table = Table(box=None, pad_edge=False)
    for heading in ("row", "cost", *TITLES.values(), "wrong here"):
        table.add_column(heading)
    for own in lines:
        scores = [own.scores.get(title, LACKING) for title in TITLES.values()]
        wrong = sum(map(bool, demo.wrong(own)))
        table.add_row(own.rule.partition(":")[0], own.cost, *scores, f"{wrong} of {len(demo.labels)}")
    Console().print(table)
    print(demo.note())
