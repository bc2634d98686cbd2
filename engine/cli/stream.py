"""``segue sample --out FILE.npz``: samples for an evaluation suite, on the disk as they are drawn, in any number of shards."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..engine import Engine, SampleRun
from ..files import check_writable
from ..labels import parse_labels
from ..numeric_input import check_seed
from ..planning.plan import Plan
from ..planning.plan_warnings import already_told
from ..records.provenance import Origin
from ..running.progress import Counting, progress_bar
from .jobs import refuse_prompts
from .npz_file import NpzFile, Shard, remove_samples
from .options import Output, PromptOptions, RuleOptions, RunOptions, Source
from .session import (
    check_batch,
    choose_rule,
    choose_seeds,
    make_plan,
    open_engine,
    print_warnings,
    refuse_options,
    refuse_prompt_model,
)

BATCH = {"cuda": 256}
BATCH_ELSEWHERE = 32


def archive_of(out: Path | None) -> Path | None:
    """The archive that samples go into, None where pictures go into a folder or a PNG file."""
    return out if out is not None and out.suffix.lower() == ".npz" else None


def refuse_shards(rank: int | None, world: int | None) -> None:
    """Raise ``ValueError`` for shards of what is no archive."""
    for name, value in (("rank", rank), ("world", world)):
        if value is not None:
            raise ValueError(f"--{name} {value} is for samples that go into one file: give --out FILE.npz")


@dataclass(frozen=True)
class Stream:
    """What is drawn into an archive: sample ``i`` is of class ``labels[i % len(labels)]``, from seed ``first_seed + i``."""

    engine: Engine
    plan: Plan
    labels: tuple[int, ...]
    first_seed: int
    check_finite: bool = False

    def made_by(self, origin: Origin, rule: str) -> dict:
        """What the file is begun with, and what may not change before its end."""
        plan = {"steps": self.plan.schedule.steps, "solver": self.plan.solver.name, "schedule": self.plan.schedule.name}
        levels = [float(sigma) for sigma in self.plan.schedule.sigmas]
        drawn = {"rule": rule, "classes": list(self.labels), "first_seed": self.first_seed, "levels": levels}
        return origin.identity | plan | drawn

    def draw(self, file: NpzFile, title: str) -> None:
        """Draw what the file lacks of its shard, batch by batch."""
        todo = file.shard.samples()[file.written :]
        batch = file.shard.batch
        with progress_bar(title, self.plan.calls * -(-len(todo) // batch)) as advance, already_told():
            for first in range(0, len(todo), batch):
                indices = todo[first : first + batch]
                labels = [self.labels[index % len(self.labels)] for index in indices]
                run = self._sample(labels, [self.first_seed + index for index in indices], Counting(None, advance))
                file.append(np.stack([np.asarray(image) for image in run.images]), torch.tensor(labels))

    def _sample(self, labels: list[int], seeds: list[int], callback) -> SampleRun:
        plan = self.plan
        options = {"schedule": plan.schedule, "solver": plan.solver, "callback": callback, "check_finite": self.check_finite}
        return self.engine.sample(labels, plan.guidance, seeds=seeds, **options)


def write_samples(
    path: Path,
    source: Source,
    rule: RuleOptions,
    run: RunOptions,
    output: Output,
    text: PromptOptions,
    rank: int | None = None,
    world: int | None = None,
) -> None:
    """Check everything, draw what is missing, and make the archive when all shards are there."""
    shards = (0 if rank is None else rank, 1 if world is None else world)
    count = _check(path, output, run, shards[1])
    Shard(count, 1, *shards)  # a rank that is none raises before the model is read
    refuse_prompt_model(source, "an .npz file holds samples of classes")
    refuse_options(source, ("upscale",), f"{path} holds samples as they are drawn")
    engine = open_engine(source)
    refuse_prompts(engine.spec, text)
    parsed = choose_rule(rule, engine.spec, source)
    plan = make_plan(engine, parsed, run)
    if plan.samples:
        raise ValueError(
            f"the samples of an archive share one rule, got {parsed.text!r} with one for each of {len(plan.samples)}"
        )
    stream = Stream(engine, plan, _labels(engine, run), _first_seed(run, count), bool(run.check_finite))
    if output.force:
        remove_samples(path)
    batch = run.max_batch or BATCH.get(engine.device.type, BATCH_ELSEWHERE)
    origin = Origin.of(engine, source.name, **source.how).with_decoder(engine.decoder)
    factor = 1 if engine.decoder is None else engine.decoder.factor
    size = (factor * plan.height, factor * plan.width)
    file = NpzFile(path, Shard(count, batch, *shards), *size, stream.made_by(origin, parsed.text))
    print_warnings(plan, parsed)
    before, began = file.written, time.perf_counter()
    try:
        stream.draw(file, engine.spec.name)
    except BaseException:
        file.give_up()
        raise
    _report(file, parsed.text, before, time.perf_counter() - began, file.finish(), output.json)


def _check(path: Path, output: Output, run: RunOptions, world: int) -> int:
    """The number of samples; raises ``ValueError`` or ``OSError`` for options that an archive has no use for."""
    for name in ("grid", "columns", "zoom", "kind"):
        if (value := getattr(output, name)) is not None:
            option = {"kind": "output"}.get(name, name)
            raise ValueError(f"--{option} {value} is for pictures in a folder; {path} holds samples")
    if run.count is None:
        raise ValueError(f"how many samples go into {path}? give --count")
    if output.force and world > 1:
        raise ValueError(f"--force would remove what the other {world - 1} shards write; remove {path} yourself")
    check_batch(run.max_batch)
    check_writable(path, folder=False)
    return run.count


def _labels(engine: Engine, run: RunOptions) -> tuple[int, ...]:
    spec = engine.spec
    return tuple(parse_labels("all" if run.classes is None else run.classes, spec.num_classes, spec.class_names, spec.name))


def _first_seed(run: RunOptions, count: int) -> int:
    seeds = choose_seeds(run)
    if len(seeds) != 1:
        raise ValueError(f"the seeds of an archive count up from one number, got {run.seeds!r}")
    check_seed(seeds[0] + count - 1)
    return check_seed(seeds[0])


def _report(file: NpzFile, rule: str, before: int, seconds: float, made: Path | None, as_json: bool) -> None:
    count, drawn = file.shard.count, file.written - before
    if as_json:
        summary = {
            "file": str(file.path),
            "count": count,
            "drawn": drawn,
            "seconds": round(seconds, 3),
            "whole": made is not None,
        }
        print(json.dumps(summary | json.loads(file.record.read_text(encoding="utf-8"))["made_by"]))
        return
    print(f"{drawn} samples drawn by {rule} in {seconds:.1f} s" + (f", {before} were there" if before else ""))
    if made is not None:
        print(f"{count} samples in {made}")
    else:
        others = ", ".join(map(str, file.missing()))
        print(f"shard {file.shard.rank} of {file.shard.world} is written; {file.path} is made when all are, and lacks {others}")
