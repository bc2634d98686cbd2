"""Writes the launch table: ``python -m segue.kernels.tune`` times candidates on the GPU at hand, for its architecture.

``--untimed`` needs no GPU: for every architecture it takes, for each entry, the first candidate in the order of expectation
that compiles without spills and within the shared memory for every case of the catalogue that would use it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .catalogue import SIZES, Case, Factory, cases
from .dispatch import LIBRARY, MORE_BACKENDS, select_kernels
from .launch import (
    AttentionLaunch,
    FlatLaunch,
    Key,
    LaunchConfig,
    MatmulLaunch,
    ReadoutLaunch,
    RowLaunch,
    recorded_lookups,
    table_architecture,
    using,
)
from .launch_table import PREFERRED, PROVENANCE, TABLE
from .resources import ARCHITECTURES, CAPABILITY, Specialisation, case_launches, compile_specialisation
from .triton_runtime import architecture, triton

TABLE_FILE = Path(__file__).with_name("launch_table.py")
TABLE_SOURCE = '''"""Launch configurations by architecture, operation and shape class.

Written by ``python -m segue.kernels.tune``.
"""

from .launch import AttentionLaunch, FlatLaunch, LaunchConfig, MatmulLaunch, ReadoutLaunch, RowLaunch

PROVENANCE: dict[str, str] = {}

# operations for which a backend was measured to be the fastest
PREFERRED: dict[str, dict[str, str]] = {}

TABLE: dict[str, dict[tuple[str, str], LaunchConfig]] = {}
'''
DTYPE = torch.bfloat16
FLAT = (FlatLaunch(1024, 4), FlatLaunch(2048, 8), FlatLaunch(512, 4), FlatLaunch(4096, 8))
MATMUL = (
    MatmulLaunch(128, 256, 64, 8, 8, 3),
    MatmulLaunch(128, 256, 64, 8, 8, 4),
    MatmulLaunch(128, 128, 64, 8, 8, 4),
    MatmulLaunch(128, 128, 64, 8, 8, 3),
    MatmulLaunch(128, 128, 64, 8, 8, 2),
    MatmulLaunch(128, 128, 64, 8, 4, 3),
    MatmulLaunch(64, 128, 64, 8, 4, 3),
    MatmulLaunch(64, 64, 64, 8, 4, 2),
)
# in the order of expectation: for a default, the first that compiles well is taken
CANDIDATES: dict[str, tuple[LaunchConfig, ...]] = {
    "embed": (
        MatmulLaunch(64, 64, 64, 1, 4, 2),
        MatmulLaunch(64, 128, 64, 1, 4, 2),
        MatmulLaunch(32, 64, 64, 1, 4, 2),
        MatmulLaunch(32, 64, 32, 1, 4, 2),
        MatmulLaunch(128, 64, 64, 1, 8, 2),
    ),
    "gather": FLAT,
    "solver": FLAT,
    "philox": (FlatLaunch(128, 4), FlatLaunch(256, 4), FlatLaunch(512, 8)),
    "correction": (FlatLaunch(4096, 8), FlatLaunch(2048, 8), FlatLaunch(8192, 16)),
    "heads": (RowLaunch(64, 4), RowLaunch(32, 4), RowLaunch(128, 8), RowLaunch(128, 4), RowLaunch(16, 2)),
    "attention": (
        AttentionLaunch(128, 128, 8, 2),
        AttentionLaunch(128, 64, 8, 3),
        AttentionLaunch(128, 64, 4, 3),
        AttentionLaunch(64, 64, 4, 3),
        AttentionLaunch(128, 64, 8, 2),
        AttentionLaunch(128, 32, 8, 2),
        AttentionLaunch(64, 32, 4, 2),
    ),
    "linear": MATMUL,
    "linear_residual": MATMUL,
    "readout": (
        ReadoutLaunch(16, 128, 4, 2),
        ReadoutLaunch(32, 128, 8, 2),
        ReadoutLaunch(16, 64, 4, 2),
        ReadoutLaunch(16, 64, 8, 2),
        ReadoutLaunch(16, 32, 8, 2),
        ReadoutLaunch(16, 32, 16, 2),
    ),
}
FULL_PRECISION = tuple(AttentionLaunch(*sizes, 4, 1) for sizes in ((32, 32), (32, 16), (16, 32), (16, 16)))
ADALN_WARPS = {"d512": (1, 2, 4), "d1024": (2, 4, 1), "d2048": (4, 8, 2), "d4096": (8, 4, 16)}


def candidates(key: Key) -> tuple[LaunchConfig, ...]:
    """Configurations worth trying for one entry of the table."""
    operation, shape_class = key
    if shape_class == "fp32":
        return FULL_PRECISION
    if operation == "adaln":
        return tuple(RowLaunch(rows, warps) for warps in ADALN_WARPS[shape_class] for rows in (4, 2, 8, 1))
    return CANDIDATES[operation]


@cache
def users(served: str) -> dict[Key, list[Case]]:
    """The cases of the catalogue behind every entry that they look up on an architecture."""
    found: dict[Key, list[Case]] = {}
    for size in SIZES:
        for case in cases(size):
            if case.minimum_capability <= CAPABILITY[served]:
                for key in _lookups(case, served):
                    found.setdefault(key, []).append(case)
    return found


def _lookups(case: Case, served: str) -> set[Key]:
    """The entries that a case looks up; an entry that is new to the table starts as its first candidate."""
    while True:
        try:
            with recorded_lookups() as keys:
                case_launches(case, served)
            return keys
        except KeyError as missing:
            (key,) = missing.args
            TABLE[served][key] = candidates(key)[0]


def compiles_well(job: tuple[Key, LaunchConfig, str]) -> bool:
    """Whether every case of an entry compiles for an architecture without spills and within the shared memory."""
    key, config, served = job
    seen: set[Specialisation] = set()
    for case in users(served)[key]:
        with using(*key, config):
            launches = case_launches(case, served)
        for launch in launches:
            specialisation = Specialisation.of(launch, served)
            if specialisation not in seen and not compile_specialisation(specialisation, launch, ()).fits:
                return False
            seen.add(specialisation)
    return True


def first_fitting(key: Key, served: str) -> LaunchConfig:
    """The first candidate of an entry that compiles well.  Raises ``ValueError`` where none does."""
    for config in candidates(key):
        if compiles_well((key, config, served)):
            print(f"{served} {key}: {config}", flush=True)
            return config
    raise ValueError(f"no candidate for {key} on {served} compiles without spills")


def fitting(served: str, only: set[str], jobs: int) -> dict[Key, tuple[LaunchConfig, ...]]:
    """The candidates of every entry that compile well, compiled by ``jobs`` processes."""
    work = [(key, config, served) for key in users(served) if not only or key[0] in only for config in candidates(key)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        verdicts = dict(zip(work, pool.map(compiles_well, work), strict=True))
    found: dict[Key, tuple[LaunchConfig, ...]] = {}
    for key, config, _ in work:
        found[key] = found.get(key, ()) + ((config,) if verdicts[key, config, served] else ())
    return found


def agrees(case: Case, make: Factory) -> bool:
    """The kernel errs against fp64 at most twice as much as the reference does, plus two roundings of its own output."""
    truths = _outputs(case.reference, tree_map(_doubled, case.arguments(make)))
    eagers, kernels = (_outputs(function, case.arguments(make)) for function in (case.reference, case.kernel))
    for truth, eager, ours in zip(truths, eagers, kernels, strict=True):
        error, allowed = ((x.double() - truth.double()).abs().max() for x in (ours, eager))
        if not error <= 2 * (allowed + torch.finfo(ours.dtype).eps * truth.double().abs().max()):
            return False
    return True


def _doubled(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _outputs(function: Callable, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Everything floating-point that a call returns or may have written: results and tensor arguments."""
    result = function(*arguments)
    return [x for x in tree_leaves((result, arguments)) if isinstance(x, Tensor) and x.is_floating_point()]


def seconds(function: Callable, case: Case, make: Factory) -> float:
    """Median time of a call with the L2 cache flushed before each."""
    arguments = case.arguments(make)
    return triton.testing.do_bench(lambda: function(*arguments), warmup=20, rep=60, return_mode="median") / 1e3


def timed(device: torch.device, served: str, only: set[str], jobs: int) -> dict[Key, LaunchConfig]:
    """The fastest fitting candidate of every entry, on the case that moves or computes most; wrong results are left out."""
    make, chosen = Factory(device, DTYPE), {}
    for key, configs in fitting(served, only, jobs).items():
        case = max(users(served)[key], key=lambda case: case.bytes_moved + case.flops / 200)
        results: dict[LaunchConfig, float] = {}
        for config in configs:
            with using(*key, config):
                if agrees(case, make):
                    results[config] = seconds(case.kernel, case, make)
        if not results:
            raise ValueError(f"no candidate for {key} compiles without spills and gives the right numbers on this device")
        chosen[key] = min(results, key=results.__getitem__)
        print(f"{key}: {chosen[key]} {results[chosen[key]] * 1e6:.1f} us, {case.name}", flush=True)
    return chosen


def preferred(device: torch.device) -> dict[str, str]:
    """The fastest backend of every operation that defaults to the vendor's library, by geometric mean over the catalogue."""
    make, found = Factory(device, DTYPE), {}
    for operation in LIBRARY:
        alike = [case for size in SIZES for case in cases(size) if case.operation == operation]
        scores = {}
        for name in ("reference", "triton", *MORE_BACKENDS.get(operation, ())):
            try:
                selection = select_kernels(device, DTYPE, overrides={operation: name})
            except ValueError as error:
                print(f"{operation}: {name} left out: {error}")
                continue
            function = getattr(selection.kernels, operation)
            scores[name] = math.fsum(math.log(seconds(function, case, make)) for case in alike) / len(alike)
        found[operation] = min(scores, key=scores.__getitem__)
        print(f"{operation}: " + ", ".join(f"{name} {math.exp(score) * 1e6:.1f} us" for name, score in scores.items()))
    return found


def table_source() -> str:
    """The tables in memory as the source of ``launch_table.py``, as the formatter would leave it."""

    def mapping(entries: dict, indent: str = "    ") -> str:
        lines = (f"{indent}{source(key)}: {source(value)},\n" for key, value in sorted(entries.items()))
        return "{\n" + "".join(lines) + indent[4:] + "}" if entries else "{}"

    def source(value: object) -> str:
        if isinstance(value, dict):
            return mapping(value, "        ")
        if isinstance(value, tuple):
            return f"({', '.join(map(source, value))})"
        return json.dumps(value) if isinstance(value, str) else repr(value)

    return TABLE_SOURCE.format(mapping(PROVENANCE), mapping(PREFERRED), mapping(TABLE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--untimed", action="store_true", help="defaults for every architecture, by compilation alone")
    parser.add_argument("--only", default="", help="operations to time, such as attention,linear; default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    options = parser.parse_args()
    version = f"triton {triton.__version__}"
    if options.untimed:
        for served in ARCHITECTURES:
            TABLE[served] = {key: first_fitting(key, served) for key in users(served)}
            PROVENANCE[served] = f"first candidate that compiles without spills, not timed; {version}"
    else:
        device = torch.device("cuda", torch.cuda.current_device())
        served = table_architecture(architecture(device))
        TABLE[served] |= timed(device, served, set(filter(None, options.only.split(","))), options.jobs)
        PREFERRED[served] = preferred(device)
        name, today = torch.cuda.get_device_name(device), datetime.date.today()
        PROVENANCE[served] = f"timed on {name}, torch {torch.__version__}, {version}, {today}"
    TABLE_FILE.write_text(table_source())


if __name__ == "__main__":
    main()
