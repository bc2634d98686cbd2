"""Suite ``cold``: seconds to the first image in a fresh process, weights made at random instead of loaded."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..allocator import KEPT
from ..cases import BenchModel
from ..cold_start import STAGES, VARIANTS
from ..diffusers_loop import RULES
from ..rows import Row
from ..session import Session
from ..timing import Statistic
from ..workloads import chosen_cases

NAME = "cold"
STARTS = 3
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

Start = Callable[[list[str], float], dict[str, float]]


def start_process(arguments: list[str], limit_s: float) -> dict[str, float]:
    """Stage seconds of one cold start, whose compilers find nothing that another start has left.

    Raises ``TimeoutError`` for one that was ended at its limit, ``RuntimeError`` with the process's last line when it fails.
    """
    command = [sys.executable, "-m", "segue.bench.cold_start", *arguments]
    with tempfile.TemporaryDirectory(prefix="segue-cold-", ignore_cleanup_errors=True) as folder:
        caches = {name: str(Path(folder, name.lower())) for name in CACHES}
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": limit_s}
        try:
            done = subprocess.run(command, env={**os.environ, **caches}, **options)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it was ended after the {limit_s:.0f} s that were left") from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed without a message"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(session: Session, start: Start = start_process) -> None:
    """Measure every model; a variant that cannot start is reported and left out."""
    settings = session.settings
    rule = (settings.rules or ("sgg",))[0]
    if rule not in RULES:  # what every variant can draw
        raise ValueError(f"cold starts are measured under {', '.join(RULES)}, got {rule!r}")
    for model, batch in chosen_cases(session):
        if model.fixed:
            session.echo(f"{NAME} {model.text}: not run, the peers need a model with random weights")
            continue
        case = f"{model.text} batch {batch}, {settings.calls} calls, {rule}"
        if session.wants(NAME, case, variants=VARIANTS):
            session.attempt(NAME, case, partial(_measured, session, model, batch, case, rule, start))


def _measured(session: Session, model: BenchModel, batch: int, case: str, rule: str, start: Start) -> None:
    session.commit(measure(session, model, batch, case, rule, start))


def measure(session: Session, model: BenchModel, batch: int, case: str, rule: str, start: Start) -> list[Row]:
    """Start every variant in turn, as often as the limit of the session allows."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(min(STARTS, session.settings.repetitions)):
        for name, starts in list(seconds.items()):
            left = 60 * session.minutes_left
            longest = max((sum(stages.values()) for stages in starts), default=0.0)
            try:
                if left > longest:
                    starts.append(start(["--variant", name, *process_options(session, model, batch, rule)], left))
                elif not starts:
                    raise TimeoutError(f"the {session.settings.limit_minutes:g} minutes are over")
            except (TimeoutError, RuntimeError) as error:
                session.echo(f"{NAME} {case}: {name}, start {len(starts) + 1} not measured, {error}")
                if isinstance(error, TimeoutError) and not starts:
                    session.unfinished += 1
                if not (starts and isinstance(error, TimeoutError)):
                    del seconds[name]  # what fails is not reported, what was measured before the time was over is
    return [row for name, starts in seconds.items() for row in start_rows(session, case, name, starts)]


def process_options(session: Session, model: BenchModel, batch: int, rule: str) -> list[str]:
    """What a start needs to run as the rows of this session say: also its threads and its allocator."""
    settings, environment = session.settings, session.environment
    kept = environment.versions.get("allocator") == KEPT
    options = ["--model", model.text, "--device", str(settings.torch_device), "--dtype", settings.dtype_name, "--rule", rule]
    options += ["--batch", str(batch), "--calls", str(settings.calls), "--threads", str(environment.threads)]
    return [*options, "--keep-memory" if kept else "--no-keep-memory"]


def start_rows(session: Session, case: str, name: str, starts: list[dict[str, float]]) -> list[Row]:
    """Every stage, and the time to the first image: all of it but the making of the weights."""
    rows = []
    for stage in STAGES:
        rows.append(session.row(NAME, case, name, stage, "s", Statistic.of(np.array([each[stage] for each in starts]))))
    first = Statistic.of(np.array([each["import"] + each["first draw"] for each in starts]))
    note = "import, set-up and first draw with empty compiler caches, without making the weights"
    return [*rows, session.row(NAME, case, name, "time to the first image", "s", first, note=note)]
