"""One visit to a GPU: tests, benchmarks and tuning as processes of their own, part by part, into one folder.

The folder holds ``log.txt`` (everything printed), ``visit.json`` (what each part did, and from which commit),
``results.jsonl`` and ``.csv``, and ``launch_table.py``, which the tuner writes after every entry.  Started again with the same
folder, on this machine or a fresh one, a visit goes on with what is not done.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from .child_process import LAST_WORDS_S, execute
from .placed_table import PlacedTable
from .telemetry import COMMIT_VARIABLE, cuda_versions, current_commit, device_name
from .tuned_table import INSTALLED, made_for
from .visit_folder import complaints, read_state, shorten, write_state
from .visit_parts import RESULTS, ROOT, TUNED_TABLE, Part, parts
from .wheels import found_wheels, unpack

TAIL = 15  # lines of a failed part shown at once; the log has all
CLOSING_S = 1.0 + LAST_WORDS_S  # to end a part that hangs, and to write the state
DONE = ("passed", "missing")
TUNE = "tune"
PREDICTIONS = "segue.bench.census_beside"
PREDICTION_S = 20.0  # for counting the kernels of two networks on the host
AGAIN = ("unfinished", "not reached")  # tried once more in the same call if time is left

Execute = Callable[[list[str], float, Path, Mapping[str, str]], int | None]


@dataclass(frozen=True)
class Machine:
    """What a visit asks of the machine; replaced in tests."""

    run: Execute = execute
    now: Callable[[], float] = time.monotonic
    has_device: Callable[[], bool] = torch.cuda.is_available
    describe: Callable[[], dict[str, str]] = lambda: describe_device(torch.device("cuda"))
    tuned_for: Callable[[], dict[str, str]] = lambda: made_for(torch.device("cuda"))
    installed_table: Path = INSTALLED


def describe_device(device: torch.device) -> dict[str, str]:
    """Name and versions of what rows are measured on."""
    return {"device": device_name(device), **cuda_versions(device)}


@dataclass
class _Visit:
    """A call in progress: where it writes, what it knows, and when it must end."""

    out: Path
    machine: Machine
    known: dict[str, Part]
    state: dict
    end: float
    commit: str
    environment: dict[str, str]
    placed: PlacedTable

    @property
    def log(self) -> Path:
        return self.out / "log.txt"

    def status(self, name: str) -> str:
        return self.state["parts"].get(name, {}).get("status", "not reached")


def run_visit(
    out: Path,
    limit_minutes: float,
    names: tuple[str, ...] | None = None,
    wheels: Path | None = None,
    machine: Machine | None = None,
) -> int:
    """Do the parts that are not done yet; returns 0 when every chosen part has passed, else 1.

    ``wheels``: a folder of packages for the parts, such as diffusers.  Raises ``ValueError`` for an unknown part, a limit that
    is not positive, a folder without wheels or with a damaged state, and a machine without a CUDA device.
    """
    machine = machine or Machine()
    start, known = machine.now(), parts(out)
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown part {name!r}; known: {', '.join(known)}")
    if not limit_minutes > 0:
        raise ValueError(f"limit-minutes must be positive, got {limit_minutes}")
    brought = found_wheels(wheels) if wheels else []
    if not machine.has_device():
        raise ValueError("a GPU visit needs a CUDA device, and this machine has none")
    state, commit = read_state(out), current_commit(ROOT)
    out.mkdir(parents=True, exist_ok=True)
    if commit == "unknown":
        print(f"there is no repository here: rows will not say their commit; set {COMMIT_VARIABLE}", flush=True)
    today = datetime.now(UTC).isoformat(timespec="seconds")
    state["calls"].append({"commit": commit, "date": today, "limit_s": 60 * limit_minutes, **machine.describe()})
    write_state(out, state)
    with tempfile.TemporaryDirectory(prefix="segue-wheels-", ignore_cleanup_errors=True) as packages:
        environment = {COMMIT_VARIABLE: commit} | _packages(brought, Path(packages))
        placed = PlacedTable(out / TUNED_TABLE, machine.installed_table)
        visit = _Visit(out, machine, known, state, start + 60 * limit_minutes, commit, environment, placed)
        visit.placed.place_own()
        chosen = names or tuple(known)
        try:
            _do_all(visit, chosen)
        finally:
            visit.placed.place_own()
        _show_predictions(visit)
    for line in complaints(out):
        print(f"{out}: {line}", flush=True)
    return 0 if all(visit.status(name) in DONE for name in chosen) else 1


def _show_predictions(visit: _Visit) -> None:
    """Measured beside predicted for every step that was measured, if there is time to count its kernels.

    A process of its own does it, which reads the tree's table, as the step did, and takes no longer than the visit has.
    """
    rows, left = visit.out / RESULTS, _left(visit)
    if not rows.is_file():
        return
    by_hand = f"measured beside predicted: segue bench census MODEL --beside {rows}"
    if left < PREDICTION_S:
        print(by_hand, flush=True)
        return
    code, text = _execute(visit, "predictions", [sys.executable, "-m", PREDICTIONS, str(rows)], left, {})
    if code == 0:
        print(text, end="", flush=True)
    else:
        print(f"{_last_lines(text)}\nthe predictions: {_status(code)}; {by_hand}", flush=True)


def _do_all(visit: _Visit, chosen: tuple[str, ...]) -> None:
    """Every part that has not passed, then once more those that lacked time or a tuned table, while there is time."""
    for name in chosen:
        if visit.status(name) != "passed":
            _do(visit, name)
        part = visit.state["parts"][name]
        print(f"{name}: {part['status']} ({part['seconds']:.0f} s)", flush=True)
    for name in chosen:
        if visit.status(name) in AGAIN and _left(visit) >= visit.known[name].least:
            _do(visit, name)
            print(f"{name}, once more: {visit.status(name)}", flush=True)


def _packages(wheels: list[Path], target: Path) -> dict[str, str]:
    """The search path with what the wheels hold; without them, and one line, where they cannot be installed."""
    if not wheels:
        return {}
    try:
        unpack(wheels, target)
    except RuntimeError as error:
        print(f"the wheels are not used: {error}", flush=True)
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))}


def _place_table(visit: _Visit, name: str) -> bool:
    """The launch table that a part is measured with: from ``tune`` on the folder's, before it the tree's own.

    Returns whether it is a tuned one.
    """
    order = [*visit.known]
    if TUNE in order and order.index(name) < order.index(TUNE):
        visit.placed.place_own()
        return False
    return visit.placed.place_tuned(visit.machine.tuned_for(), visit.state.get("table"))


def _expect_table(visit: _Visit) -> None:
    """The table that the tuner writes from here on is for this machine; one for another is not left in its place."""
    here = visit.machine.tuned_for()
    if visit.state.get("table") != here:
        visit.placed.tuned.unlink(missing_ok=True)
    visit.state["table"] = here


def _left(visit: _Visit) -> float:
    """Seconds that a part may still take."""
    return visit.end - CLOSING_S - visit.machine.now()


def _do(visit: _Visit, name: str) -> None:
    """One part, its state written before and after."""
    part, left = visit.known[name], _left(visit)
    if part.missing:
        print(f"{name}: not run, {part.missing}")
        outcome = {"status": "missing", "seconds": 0.0, "reason": part.missing}
    elif left < part.least or left <= 0 or (part.tuned and not _place_table(visit, name)):
        outcome = {"status": "not reached", "seconds": 0.0}
        if visit.status(name) != "not reached":
            return  # what it did before is worth more
    else:
        if name == TUNE:
            _expect_table(visit)
        _place_table(visit, name)
        visit.state["parts"][name] = {"status": "ended with the visit", "seconds": 0.0}
        write_state(visit.out, visit.state)
        outcome = _run(visit, name, part, min(part.seconds, left))
    visit.state["parts"][name] = {**outcome, "commit": visit.commit}
    write_state(visit.out, visit.state)


def _run(visit: _Visit, name: str, part: Part, limit_s: float) -> dict:
    """What became of a part that was started."""
    now = visit.machine.now
    start = now()
    code, text = _execute(visit, name, [*part.command, *part.limit(limit_s)], limit_s, part.environment)
    status = "unfinished" if part.unfinished is not None and code in (None, part.unfinished) else _status(code)
    if status == "passed" and part.writes and not part.writes.exists():
        status = "unfinished"
    if status != "passed":
        print(_last_lines(text), flush=True)
    return {"status": status, "seconds": now() - start, "limit_s": limit_s, "code": code}


def _execute(
    visit: _Visit, name: str, command: list[str], limit_s: float, environment: Mapping[str, str]
) -> tuple[int | None, str]:
    """Exit code of a process whose output goes to the log, None if it was ended at its limit, and that output."""
    with visit.log.open("a", encoding="utf-8") as file:
        file.write(f"\n=== {name}, {limit_s:.0f} s at most: {' '.join(command)}\n")
    position = visit.log.stat().st_size
    code = visit.machine.run(command, limit_s, visit.log, {**visit.environment, **environment})
    with visit.log.open("rb") as file:
        file.seek(position)
        text = file.read().decode(errors="replace")
    shorten(visit.log)
    return code, text


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-TAIL:])


def _status(code: int | None) -> str:
    if code is None:
        return "timed out"
    if code < 0:
        return f"killed by signal {-code}"
    return "failed" if code else "passed"
