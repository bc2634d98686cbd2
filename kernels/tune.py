"""Writes the launch table: ``python -m segue.kernels.tune`` times candidates on the GPU at hand, for its architecture.

What a run gains most from comes first, and the table is written after every entry, so that it may be stopped at any time and
goes on where it was: what is recorded as timed on this card, by these versions and for these kernels is not timed again.
``--untimed`` needs no GPU: for every architecture it takes, for each entry, the first candidate in the order of expectation
that compiles without spills and within the shared memory for every case of the catalogue that would use it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .agenda import Choice, agenda, eligible_backends, users, weighed
from .candidates import candidates
from .catalogue import Case, Factory
from .compilers import Compilers, Job, misfit
from .dispatch import select_kernels
from .launch import Key, LaunchConfig
from .launch_lookup import launch_config, stand_in, table_architecture, using
from .launch_table import MEASURED, PREFERRED, PROVENANCE, TABLE
from .measured import is_recorded, name_of, outcome_digest, take_over
from .resources import ARCHITECTURES, TIMED, runs_on
from .table_file import TABLE_FILE, write_table
from .trial import Trial
from .triton_runtime import architecture, triton

DTYPE = torch.bfloat16
DONE, LOST, UNFINISHED = 0, 1, 3  # exit codes: to the end of the agenda; without the device; started again, it goes on
TIMED_SHARE = 0.9  # of what an entry is used for; the cases that make up the rest are not timed


class DeviceLostError(Exception):
    """The device answers nothing any more: nothing that follows can be measured."""


@dataclass(frozen=True)
class Device:
    """The GPU at hand, and the architecture of the table that serves it."""

    device: torch.device
    architecture: str

    @classmethod
    def current(cls) -> Device:
        """The current CUDA device."""
        device = torch.device("cuda", torch.cuda.current_device())
        return cls(device, architecture(device))

    @property
    def served(self) -> str:
        return table_architecture(self.architecture)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def check(self) -> None:
        """Raises :class:`DeviceLostError` where an earlier kernel has broken the device's context."""
        try:
            torch.cuda.synchronize(self.device)
        except Exception as error:
            raise DeviceLostError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """What an exception says, on one line that is not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass(frozen=True)
class Tried:
    """A case to time, and what a second of it is worth in parts of a run."""

    trial: Trial
    weight: float

    @property
    def name(self) -> str:
        return self.trial.case.name


def trials(cases: Iterable[Case], device: Device) -> list[Tried]:
    """The cases that make up most of what an entry or a choice is for, the largest first."""
    able = [case for case in cases if runs_on(case, device.architecture)]
    make = Factory(device.device, DTYPE)
    return [Tried(Trial(one.case, make), one.weight) for one in weighed(able, TIMED_SHARE)]


def cost(function_of: Callable[[Case], Callable], tried: list[Tried]) -> float:
    """Parts of a run that the cases take.  Raises ``ArithmeticError`` where the numbers of one are wrong."""
    total = 0.0
    for one in tried:
        function = function_of(one.trial.case)
        if not one.trial.agrees(one.trial.case.complete(function)):
            raise ArithmeticError(f"wrong numbers for {one.name}")
        total += one.weight * one.trial.seconds(function)
    return total


def fastest(what: str, costs: Mapping[Any, Callable[[], float]], tried: list[Tried], device: Device) -> Any:
    """The cheapest of ``costs``: names of candidates and functions that measure one; None where none works."""
    found = {}
    for name, measure in costs.items():
        try:
            found[name] = measure()
        except Exception as error:  # Triton, ptxas, CUDA, cuBLAS: whatever a candidate raises, the others go on
            print(f"{what}: {name} left out, {one_line(error)}", flush=True)
            device.check()
    if not found:
        print(f"{what}: NOT TUNED, no candidate works; what there was stays", flush=True)
        return None
    best = min(found, key=found.__getitem__)
    shown = ", ".join(f"{name} {value:.5f}" for name, value in sorted(found.items(), key=lambda item: item[1])[:4])
    print(f"{what}: {best}; parts of a run: {shown}; timed on {'; '.join(one.name for one in tried)}", flush=True)
    return best


def tune_entry(key: Key, device: Device, compilers: Compilers) -> bool:
    """Time the candidates of one entry that can be launched and keep the fastest; whether there was one."""
    tried = trials(users(device.served)[key], device)
    costs = {}
    for config in candidates(key):
        if reason := compilers.obstacle((key, config, device.architecture)):
            print(f"{key}: {config} left out, {reason}", flush=True)
            continue

        def measure(config: LaunchConfig = config) -> float:
            with using(*key, config):
                return cost(lambda case: case.kernel, tried)

        costs[config] = measure
    best = fastest(str(key), costs, tried, device)
    if best is not None:
        TABLE[device.served][key] = best
    return best is not None


def choose_backend(choice: Choice, device: Device) -> bool:
    """Time the backends of one operation at one shape class and keep the fastest; whether there was one."""
    operation, shape_class = choice.operation, choice.shape_class
    tried, costs = trials(choice.cases, device), {}
    for name in eligible_backends(operation):

        def measure(name: str = name) -> float:
            function = getattr(_with_backend(operation, name, device), operation)
            return cost(lambda case: function, tried)

        costs[name] = measure
    best = fastest(f"{operation} at {shape_class}", costs, tried, device)
    if best is not None:
        PREFERRED.setdefault(device.served, {})[operation, shape_class] = best
    return best is not None


def _with_backend(operation: str, name: str, device: Device):
    return select_kernels(device.device, DTYPE, overrides={operation: name}).kernels


def timed(device: Device, only: set[str], jobs: int, limit_seconds: float, out: Path) -> int:
    """Tune what is on the agenda and not recorded until the limit: ``DONE``, ``LOST`` or ``UNFINISHED``.

    The table is written after every item.
    """
    begin, done, recorded, code = time.monotonic(), 0, 0, DONE
    items = agenda(device.architecture, only)

    def known(item: Key | Choice) -> bool:
        return is_recorded(item, device.name, device.architecture)

    entries = [item for item in items if isinstance(item, tuple) and not known(item)]
    work: list[Job] = [(entry, config, device.architecture) for entry in entries for config in candidates(entry)]
    with Compilers(jobs, work) as compilers:
        for index, item in enumerate(items):
            if known(item):
                done, recorded = done + 1, recorded + 1
                continue
            left = limit_seconds - (time.monotonic() - begin)
            if left <= 0 or (isinstance(item, tuple) and not compilers.wait(item, left)):
                count = f"{sum(not known(other) for other in items[index:])} of {len(items)}"
                print(f"the limit of {limit_seconds:g} s is reached: {count} not begun", flush=True)
                code = UNFINISHED
                break
            try:
                done += _tuned(item, device, compilers)
            except DeviceLostError as error:
                print(f"{item}: the device is lost, {error}", flush=True)
                return LOST
            _record(device, done, len(items))
            write_table(out)
    if recorded:
        write_table(out)
    print(f"{done} of {len(items)} tuned, {recorded} of them before; written to {out}", flush=True)
    return code


def _tuned(item: Key | Choice, device: Device, compilers: Compilers) -> bool:
    """Tune an item and record its outcome; whether it has one."""
    record = MEASURED.setdefault(device.served, {})
    record.pop(name_of(item), None)
    found = choose_backend(item, device) if isinstance(item, Choice) else tune_entry(item, device, compilers)
    if found:
        record[name_of(item)] = outcome_digest(item, device.name, device.architecture)
    return found


def _record(device: Device, done: int, entries: int) -> None:
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    part = f"{done} of {entries} entries and choices"
    PROVENANCE[device.served] = f"{TIMED} {device.name}, {part}, {versions}, {datetime.date.today()}"


def untimed(only: set[str], jobs: int, out: Path) -> None:
    """Defaults for every architecture by compilation alone; an entry without a candidate that compiles well stays."""
    for served in ARCHITECTURES:
        keys = [key for key in users(served) if not only or key[0] in only]
        before = {key: launch_config(*key, served) for key in keys}
        with Compilers(jobs, []) as compilers:
            for key, config in zip(keys, compilers.map(first_fitting, [(key, served) for key in keys]), strict=True):
                failed = "NOT CHOSEN, no candidate compiles without spills; what there was stays"
                print(f"{served} {key}: {config or failed}", flush=True)
                TABLE[served][key] = config or before[key]
                MEASURED.get(served, {}).pop(name_of(key), None)
        if not only:
            TABLE[served] = {key: TABLE[served][key] for key in keys}  # without entries that nothing looks up
            PROVENANCE[served] = f"first candidate that compiles without spills, not timed; triton {triton.__version__}"
            PREFERRED.pop(served, None)
            MEASURED.pop(served, None)
        stand_in.cache_clear()
        write_table(out)


@cache
def first_fitting(job: tuple[Key, str]) -> LaunchConfig | None:
    """The first candidate of an entry that compiles well for all its cases, or None."""
    key, served = job
    return next((config for config in candidates(key) if misfit((key, config, served), spills=True) is None), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """``DONE``, ``LOST`` or ``UNFINISHED``; what the table at ``--out`` records is not timed again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--untimed", action="store_true", help="defaults for every architecture, by compilation alone")
    parser.add_argument("--only", default="", help="operations to tune, such as attention,linear; default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile; 0 compiles in this one")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="after this time nothing new is begun")
    parser.add_argument("--out", type=Path, default=TABLE_FILE, help="where the table is written; default the module itself")
    options = parser.parse_args(arguments)
    only = set(filter(None, options.only.split(",")))
    if not options.limit_seconds > 0 or options.jobs < 0:
        parser.error(f"limit-seconds must be positive and jobs not negative, got {options.limit_seconds} and {options.jobs}")
    if options.untimed:
        untimed(only, options.jobs, options.out)
        return 0
    if not torch.cuda.is_available():
        parser.error("timing needs a CUDA device; --untimed needs none")
    device = Device.current()
    try:
        if options.out.exists():
            take_over(options.out, device.served)
    except ValueError as error:
        parser.error(str(error))
    return timed(device, only, options.jobs, options.limit_seconds, options.out)


if __name__ == "__main__":
    sys.exit(main())
