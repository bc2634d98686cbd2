"""Suite ``cold``: seconds to the first image in a fresh process, weights made at random instead of loaded."""

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np

from ..cases import BenchModel
from ..cold_start import VARIANTS
from ..session import Session
from ..timing import Statistic
from ..workloads import chosen_cases

NAME = "cold"
STARTS = 3
STAGES = ("import", "build", "first draw", "second draw")
RULES = ("none", "cfg", "sgg")  # what every variant can draw

Start = Callable[[list[str], float], dict[str, float]]


def start_process(arguments: list[str], limit_s: float) -> dict[str, float]:
    """Stage seconds of one cold start; raises ``RuntimeError`` with the process's last line when it fails."""
    command = [sys.executable, "-m", "segue.bench.cold_start", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it took longer than {limit_s:.0f} s") from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed without a message"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(session: Session, start: Start = start_process) -> None:
    """Measure every model; a variant that cannot start is reported and left out."""
    settings = session.settings
    rule = (settings.rules or ("sgg",))[0]
    if rule not in RULES:
        raise ValueError(f"cold starts are measured under {', '.join(RULES)}, got {rule!r}")
    for model, batch in chosen_cases(session):
        if model.fixed:
            session.echo(f"{NAME} {model.text}: not run, the peers need a model with random weights")
            continue
        case = f"{model.text} batch {batch}, {settings.calls} calls, {rule}"
        if session.wants(NAME, case):
            measure(session, model, batch, case, rule, start)


def measure(session: Session, model: BenchModel, batch: int, case: str, rule: str, start: Start) -> None:
    """Start every variant in turn, as often as the limits allow."""
    settings = session.settings
    shared = ["--model", model.text]
    shared += ["--device", str(settings.torch_device), "--dtype", settings.dtype_name, "--rule", rule]
    shared += ["--batch", str(batch), "--calls", str(settings.calls)]
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(min(STARTS, settings.repetitions)):
        for name in list(seconds):
            if session.minutes_left <= 0 and seconds[name]:
                continue
            try:
                seconds[name].append(start(["--variant", name, *shared], max(60.0, 60 * session.minutes_left)))
            except RuntimeError as error:
                session.echo(f"{NAME} {case}: {name} not run, {error}")
                del seconds[name]
    rows = []
    for name, starts in seconds.items():
        for stage in STAGES:
            values = Statistic.of(np.array([each[stage] for each in starts]))
            rows.append(session.row(NAME, case, name, stage, "s", values))
        first = np.array([each["import"] + each["first draw"] for each in starts])
        note = "import and first draw, without making the weights"
        rows.append(session.row(NAME, case, name, "time to the first image", "s", Statistic.of(first), note=note))
    session.commit(rows)
