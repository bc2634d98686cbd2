"""What the drawing commands share: opening a model, choosing samples, running with progress, timing."""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from segue.models.sd3_sizes import SD3_SIZES, sd3_spec
from segue.models.sizes import FAMILIES, family_spec
from segue.models.spec import ModelSpec, SiTSpec
from segue.models.weights import load_model

from ..adapters.upscaling import Upscaler
from ..device import resolve_device, resolve_dtype
from ..engine import Engine
from ..images import check_pixels
from ..labels import parse_labels
from ..planning.compile import plan_part
from ..planning.plan import Plan
from ..planning.plan_warnings import already_told
from ..prompts.saved_pipeline import SavedSD3
from ..rules.batch import ParsedRules, parse_rules
from ..rules.integers import parse_integers
from ..rules.presets import ParsedRule, calibrated_rule
from ..running.progress import Counting, progress_bar
from ..sources import Reading, local_source
from .options import DEFAULT_LINEARS, DEFAULT_RULE, DEFAULT_SOLVER, UNGUIDED, RuleOptions, RunOptions, Source
from .selection import pair_samples

_PUBLISHED = re.compile(rf"({'|'.join(FAMILIES)})-(\w+/\d+)(?:-(\d+))?", re.IGNORECASE)


def open_engine(source: Source, pictures: bool = True) -> Engine:
    """The engine of a class-label model; with ``pictures`` its latents are pixels or it has a VAE, without it is left out.

    Raises ``ValueError`` or ``OSError``.
    """
    if not pictures:
        refuse_options(source, ("vae",), "latents are written as they are")
    device = resolve_device(source.device)
    dtype = resolve_dtype(source.dtype, device)
    name = source.name
    refuse_size(name)
    linears = source.linears or DEFAULT_LINEARS
    how = source.how if pictures else source.how | {"vae": False}
    engine = Engine.from_pretrained(name, device=device, dtype=dtype, linears=linears, **how)
    if not isinstance(engine.spec, SiTSpec):
        raise ValueError(f"{name!r} is a transformer without text encoders and VAE; drawing needs the pipeline's folder")
    if pictures and engine.decoder is None:
        check_pixels(engine.spec.channels)
    return engine


def refuse_options(source: Source, names: Sequence[str], reason: str) -> None:
    """Raise ``ValueError`` if one of the options ``names``, which say how a model is read, was given."""
    for name in names:
        if (value := getattr(source, name)) is not None:
            raise ValueError(f"{reason}; --{name.replace('_', '-')} {value} does not apply")


def reading_of(source: Source) -> Reading:
    """Which form of the model is read, of the hub or of a folder."""
    return Reading(source.revision, source.variant, t5=source.t5 is not False)


def refuse_size(name: str) -> None:
    """Raise ``ValueError`` for a published size, which has no weights."""
    if published_spec(name):
        raise ValueError(f"{name} is a size, which segue plan takes; drawing needs a checkpoint")


def refuse_prompt_model(source: Source, reason: str) -> None:
    """Raise ``ValueError``, before any weights are read, for a published size and for a saved SD3."""
    refuse_size(source.name)
    saved = SavedSD3.read(local_source(source.name, reading_of(source), weights=False))
    if saved is not None:
        raise ValueError(f"{saved.spec.name} draws from prompts; {reason}")


def published_spec(name: str) -> ModelSpec | None:
    """The spec of a published size such as ``SiT-XL/2-512`` or ``sd3.5-medium/``, or None for any other name."""
    size = name.rstrip("/\\")
    if size.lower() in SD3_SIZES:
        return None if Path(name).exists() else sd3_spec(size.lower())
    match = _PUBLISHED.fullmatch(size)
    if not match:
        return None
    family, size, pixels = match.groups()
    return family_spec(family.lower(), size.upper(), int(pixels or 256))


def further_specs(source: Source) -> dict[str, ModelSpec]:
    """The specs of the further networks that are named, of a saved pipeline without its weights."""
    found: dict[str, ModelSpec] = {}
    for name, path in source.further.items():
        local = local_source(path)
        saved = SavedSD3.read(local)
        found[name] = load_model(local, source.family)[0].spec if saved is None else saved.spec
    return found


def choose_rule(rule: RuleOptions, spec: ModelSpec, source: Source) -> ParsedRule | ParsedRules:
    """The rule of the options; by default that of all models, or none where an adapter holds the guidance.

    With a calibration the rule that this was made for, or the one that is named, if it is the same.
    """
    if rule.calibration is not None and rule.text is None and not rule.flags:
        return calibrated_rule(rule.calibration)
    default = DEFAULT_RULE if source.adapter is None else UNGUIDED
    parsed = parse_rules(default if rule.text is None else rule.text, spec, rule.flags)
    if rule.calibration is None:
        return parsed
    if isinstance(parsed, ParsedRules):
        raise ValueError(f"a calibration is of one rule for all samples, got {parsed.text}")
    return parsed.calibrated(rule.calibration)


def check_batch(max_batch: int | None) -> None:
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max-batch must be at least 1, got {max_batch}")


def choose_samples(spec: SiTSpec, run: RunOptions, most: int) -> tuple[list[int], list[int]]:
    """Labels and seeds, one of each per picture; without ``--classes``, at most ``most`` classes evenly chosen."""
    if run.classes is None:
        labels = list(range(0, spec.num_classes, -(-spec.num_classes // most)))
    else:
        labels = parse_labels(run.classes, spec.num_classes, spec.class_names, spec.name)
    return pair_samples(labels, choose_seeds(run), 1 if run.count is None else run.count)


def choose_seeds(run: RunOptions) -> list[int]:
    try:
        return parse_integers("0" if run.seeds is None else run.seeds)
    except ValueError as error:
        raise ValueError(f"seeds: {error}") from None


def make_plan(engine: Engine, rule: ParsedRule | ParsedRules, run: RunOptions) -> Plan:
    return engine.plan(rule.guidance, run.steps, run.schedule, run.solver or DEFAULT_SOLVER)


def print_warnings(plan: Plan, rule: ParsedRule | ParsedRules) -> None:
    for note in rule.notes:
        print(f"note: {note}", file=sys.stderr)
    for warning in plan.warnings:
        print(f"warning: {rule.text}: {warning}", file=sys.stderr)


class Drawn(NamedTuple):
    """The pictures of a run, unless latents alone were asked for, the seconds that sampling took, the plan that was run."""

    images: list[Image.Image]
    seconds: float
    plan: Plan
    latents: Tensor


def draw_labels(
    engine: Engine,
    plan: Plan,
    labels: Sequence[int],
    seeds: Sequence[int],
    max_batch: int | None,
    check_finite: bool = False,
    title: str = "",
    pictures: bool = True,
    upscaler: Upscaler | None = None,
) -> Drawn:
    """What a planned run draws; a bar on stderr if that is a terminal."""
    batches = -(-len(labels) // (max_batch or len(labels)))
    with progress_bar(title or engine.spec.name, plan.calls * batches) as advance, already_told():
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
            callback=Counting(None, advance),
            check_finite=check_finite,
            upscale=upscaler,
        )
        run.latents.cpu()  # waits for the device
        seconds = time.perf_counter() - began
    return Drawn(run.images if pictures else [], seconds, run.plan, run.latents)


def warm_up_labels(engine: Engine, plan: Plan, labels: Sequence[int], seeds: Sequence[int], max_batch: int | None) -> None:
    """Build what a run needs before its clock starts: programs for its batch sizes, and one call of each live set."""
    for size in batch_sizes(len(labels), max_batch):
        part = plan_part(plan, slice(size))
        program = engine.load(part, labels[:size], seeds[:size], engine.draw_noise(part, seeds[:size]))
        for live in part.live_sets:
            program.advance(live)
        engine.release(program)


def batch_sizes(count: int, max_batch: int | None) -> set[int]:
    """The sizes of the batches that ``count`` samples are drawn in."""
    chunk = max_batch or count
    return {min(chunk, count), count % chunk} - {0}
