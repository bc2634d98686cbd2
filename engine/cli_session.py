"""What the drawing commands share: opening a model, choosing samples, running with progress, timing."""

import re
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from segue.models.sizes import FAMILIES, family_spec
from segue.models.spec import ModelSpec, SiTSpec

from .cli_options import DEFAULT_MODEL, DEFAULT_RULE, DEFAULT_SOLVER, RuleOptions, RunOptions, Source
from .device import resolve_device, resolve_dtype
from .engine import Engine
from .images import check_pixels
from .plan import Plan
from .presets import ParsedRule, parse_rule
from .selection import pair_samples, parse_integers, parse_labels

_PUBLISHED = re.compile(rf"({'|'.join(FAMILIES)})-(\w+/\d+)(?:-(\d+))?", re.IGNORECASE)
MOST_CLASSES = 24  # how many are drawn where none are chosen


def open_engine(source: Source) -> Engine:
    """The engine of a class-label model whose latents are pixels; ``ValueError`` or ``OSError`` otherwise."""
    device = resolve_device(source.device)
    dtype = resolve_dtype(source.dtype, device)
    name = source.model or DEFAULT_MODEL
    if published_spec(name):
        raise ValueError(f"{name} is a size, which segue plan takes; drawing needs a checkpoint")
    engine = Engine.from_pretrained(name, family=source.family, device=device, dtype=dtype)
    if not isinstance(engine.spec, SiTSpec):
        raise ValueError(f"the command line draws from class-label models, and {name!r} is not one")
    check_pixels(engine.spec.channels)
    return engine


def published_spec(name: str) -> SiTSpec | None:
    """The spec of a published size such as ``SiT-XL/2-512``, or None for any other name."""
    match = _PUBLISHED.fullmatch(name)
    if not match:
        return None
    family, size, pixels = match.groups()
    return family_spec(family.lower(), size.upper(), int(pixels or 256))


def choose_rule(rule: RuleOptions, spec: ModelSpec) -> ParsedRule:
    return parse_rule(DEFAULT_RULE if rule.text is None else rule.text, spec, rule.flags)


def choose_samples(spec: SiTSpec, run: RunOptions, most: int = MOST_CLASSES) -> tuple[list[int], list[int]]:
    """Labels and seeds, one of each per picture; without ``--classes``, at most ``most`` classes evenly chosen."""
    if run.max_batch is not None and run.max_batch < 1:
        raise ValueError(f"max-batch must be at least 1, got {run.max_batch}")
    if run.classes is None:
        labels = list(range(0, spec.num_classes, -(-spec.num_classes // most)))
    else:
        labels = parse_labels(run.classes, spec.num_classes, spec.class_names, spec.name)
    try:
        seeds = parse_integers("0" if run.seeds is None else run.seeds)
    except ValueError as error:
        raise ValueError(f"seeds: {error}") from None
    return pair_samples(labels, seeds, 1 if run.count is None else run.count)


def make_plan(engine: Engine, rule: ParsedRule, run: RunOptions) -> Plan:
    return engine.plan(rule.guidance, run.steps, run.schedule, run.solver or DEFAULT_SOLVER)


def print_warnings(plan: Plan, rule: ParsedRule) -> None:
    for warning in plan.warnings:
        print(f"warning: {rule.text}: {warning}", file=sys.stderr)


def draw(
    engine: Engine,
    plan: Plan,
    labels: Sequence[int],
    seeds: Sequence[int],
    max_batch: int | None,
    check_finite: bool = False,
    title: str = "",
) -> tuple[list[Image.Image], float]:
    """The pictures of a planned run, and the seconds that it took; a bar on stderr if that is a terminal."""
    batches = -(-len(labels) // (max_batch or len(labels)))
    with progress_bar(title or engine.spec.name, plan.calls * batches) as advance:
        began = time.perf_counter()
        run = engine.sample(
            labels,
            plan.guidance,
            schedule=plan.schedule,
            solver=plan.solver,
            height=plan.height,
            width=plan.width,
            seeds=seeds,
            max_batch=max_batch,
            callback=lambda _: advance(),
            check_finite=check_finite,
        )
        run.latents.cpu()  # waits for the device
        seconds = time.perf_counter() - began
    return run.images, seconds


def warm_up(engine: Engine, plan: Plan, labels: Sequence[int], seeds: Sequence[int], max_batch: int | None) -> None:
    """Build what a run needs before its clock starts: programs for its batch sizes, and one call of each live set."""
    chunk = max_batch or len(labels)
    for size in {min(chunk, len(labels)), len(labels) % chunk} - {0}:
        program = engine.load(plan, labels[:size], seeds[:size], engine.draw_noise(plan, seeds[:size]))
        for live in plan.live_sets:
            program.step(live)


@contextmanager
def progress_bar(title: str, total: int):
    """Yields a function that advances the bar by one."""
    console = Console(stderr=True)
    count = TextColumn("call {task.completed}/{task.total}")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def captions(spec: SiTSpec, labels: Sequence[int], seeds: Sequence[int]) -> list[str]:
    """What to write at each picture: its class, or its seed where all are of one class."""
    if len(set(labels)) == 1 and len(labels) > 1:
        return [f"seed {seed}" for seed in seeds]
    return [class_title(spec, label) for label in labels]


def class_title(spec: SiTSpec, label: int) -> str:
    """What to call a class."""
    return spec.class_names[label] if spec.class_names else f"class {label}"
