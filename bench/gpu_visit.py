"""One visit to a GPU: tests, tuning and benchmarks as processes of their own, part by part, resumable, into one folder.

The folder holds ``log.txt`` (everything printed), ``visit.json`` (what each part did), ``results.jsonl`` and ``.csv``, and a
copy of the launch table that the tuner wrote.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TUNER = "segue.kernels.tune"
LAUNCH_TABLE = ROOT / "kernels" / "launch_table.py"
SANITIZER = "compute-sanitizer"
TAIL = 15  # lines of a failed part shown at once; the log has all


@dataclass(frozen=True)
class Part:
    """A command of the visit, the most seconds it may take, what it lacks (None: nothing), and a file it writes elsewhere."""

    command: list[str]
    seconds: float
    missing: str | None = None
    writes: Path | None = None


def parts(out: Path) -> dict[str, Part]:
    """All parts in their order: what must be right first, then tuning, then what is measured with its result."""
    python = [sys.executable, "-m"]
    pytest = [*python, "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rs"]
    tests = None if (ROOT / "tests").is_dir() else "there are no tests beside this installation"
    sanitizer = None if shutil.which(SANITIZER) else f"{SANITIZER} is not installed"
    tuner = None if importlib.util.find_spec(TUNER) else f"there is no module {TUNER}"

    def suite(name: str, seconds: float, *options: str) -> Part:
        limit = ["--limit-minutes", f"{0.9 * seconds / 60:.2f}"]  # the rest is for starting and for the case in hand
        return Part([*python, "segue", "bench", name, "--out", str(out / "results.jsonl"), *limit, *options], seconds)

    probe = [SANITIZER, "--tool", "memcheck", "--error-exitcode", "1", *python, "segue.bench.kernel_probe"]
    return {
        "kernel-tests": Part([*pytest, str(ROOT / "tests" / "kernels")], 150, tests),
        "engine-tests": Part([*pytest, str(ROOT / "tests" / "engine"), str(ROOT / "tests" / "bench")], 90, tests),
        "sanitizer": Part(probe, 60, sanitizer),
        "tune": Part([*python, TUNER], 150, tuner, LAUNCH_TABLE),
        "kernels": suite("kernels", 90, "--case-seconds", "2"),
        "e2e": suite("e2e", 150, "--case-seconds", "12"),
        "step": suite("step", 60, "--case-seconds", "10"),
        "cost": suite("cost", 60, "--case-seconds", "12"),
        "cold": suite("cold", 60),
    }


Execute = Callable[[list[str], float, Path], int | None]


def execute(command: list[str], limit_s: float, log: Path) -> int | None:
    """Exit code of a command whose output goes to the end of ``log``; None when it passed its limit and was ended.

    It is ended with every process that it started, so that none of them keeps the GPU.
    """
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the group of this very process: its number is the leader's
            process.wait()
            return None


def run_visit(
    out: Path,
    limit_minutes: float,
    names: tuple[str, ...] | None,
    run: Execute = execute,
    now: Callable[[], float] = time.monotonic,
    has_device: Callable[[], bool] = torch.cuda.is_available,
) -> int:
    """Do the parts that are not done yet; returns 0 when every chosen part has passed, else 1.

    Raises ``ValueError`` for an unknown part, a limit that is not positive, and a machine without a CUDA device.
    """
    known = parts(out)
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown part {name!r}; known: {', '.join(known)}")
    if not limit_minutes > 0:
        raise ValueError(f"limit-minutes must be positive, got {limit_minutes}")
    if not has_device():
        raise ValueError("a GPU visit needs a CUDA device, and this machine has none")
    out.mkdir(parents=True, exist_ok=True)
    state_file, log, start = out / "visit.json", out / "log.txt", now()
    state = json.loads(state_file.read_text()) if state_file.exists() else {}
    for name in names or known:
        left = 60 * limit_minutes - (now() - start)
        if state.get(name, {}).get("status") != "passed":
            state[name] = _one(name, known[name], left, log, run, now)
            state_file.write_text(json.dumps(state, indent=1) + "\n")
        print(f"{name}: {state[name]['status']} ({state[name]['seconds']:.0f} s)", flush=True)
    return 0 if all(state[name]["status"] in ("passed", "missing") for name in names or known) else 1


def _one(name: str, part: Part, left: float, log: Path, run: Execute, now: Callable[[], float]) -> dict:
    """What became of one part, as it is kept in ``visit.json``."""
    if part.missing:
        print(f"{name}: not run, {part.missing}")
        return {"status": "missing", "seconds": 0.0, "reason": part.missing}
    if left <= 0:
        return {"status": "not reached", "seconds": 0.0}
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n=== {name}: {' '.join(part.command)}\n")
    position, start = log.stat().st_size, now()
    code = run(part.command, min(part.seconds, left), log)
    status = {0: "passed", None: "timed out"}.get(code, "failed")
    if status == "passed" and part.writes:
        shutil.copy(part.writes, log.parent)
    if status != "passed":
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(position)
            print("\n".join(file.read().splitlines()[-TAIL:]))
    return {"status": status, "seconds": now() - start, "code": code}
