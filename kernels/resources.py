"""Ahead-of-time compilation: registers, shared memory and spills of every kernel in every frozen configuration.

``python -m segue.kernels.resources`` compiles what the launchers would launch for the catalogue, for four architectures and
without a GPU, and writes ``resources.json`` beside this file, with a digest of every kernel's source.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .catalogue import SIZES, Case, Factory, cases
from .launch_lookup import table_architecture
from .launch_table import PROVENANCE
from .occupancy import MULTIPROCESSORS
from .triton_runtime import DEPENDENT, Launch, launch_options, trace_launches, triton

TABLE_FILE = Path(__file__).with_name("resources.json")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
# bytes per program; the entries of sm_80 also serve sm_86, sm_89 and sm_120, which have 99 KiB
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
CAPABILITY = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": 94}
TIMED = "timed on"  # how the provenance of measured entries begins
MEASURED_STACK = 64  # bytes of stack that the clock may have found to be worth it


@dataclass(frozen=True)
class Specialisation:
    """What Triton compiles for a launch: argument types, constants, and what is known of the others.

    ``constants`` and ``attributes`` (such as divisibility by 16) go by the path of an argument: its position, and that within
    it where it is a tuple.
    """

    kernel: str
    architecture: str
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    attributes: tuple[tuple[tuple[int, ...], tuple[tuple[str, int], ...]], ...]
    warps: int
    stages: int
    dependent: bool = False

    @classmethod
    def of(cls, launch: Launch, architecture: str) -> Specialisation:
        """By Triton's own binder, so that what is compiled ahead of time is found in the cache by a launch."""
        backend, binder = _binder(launch.kernel, architecture)
        bound, specialisation, _ = binder(**launch.arguments)
        options = launch_options(launch.warps, launch.stages, launch.dependent)
        _, signature, constants, attributes = launch.kernel._pack_args(backend, options, bound, specialisation, options)
        known = tuple((path, tuple(map(tuple, found))) for path, found in attributes.items())
        parts = tuple(signature.items()), tuple(constants.items()), known
        return cls(launch.name, architecture, *parts, launch.warps, launch.stages, launch.dependent)

    def source(self, kernel: Any) -> Any:
        """The compiler's input, equal to that of a launch of ``kernel``."""
        from triton.compiler import ASTSource

        attributes = {path: list(map(list, found)) for path, found in self.attributes}
        return ASTSource(kernel, dict(self.signature), dict(self.constants), attributes)

    @property
    def key(self) -> str:
        """The constants, and a digest of types and attributes: what distinguishes the specialisations of one kernel.

        The switch of dependent launches is no part of it where it is off: the binary is the one without the switch.
        """
        names = [name for name, _ in self.signature]
        silent = None if self.dependent else DEPENDENT
        constants = ",".join(f"{names[path[0]]}={value}" for path, value in self.constants if names[path[0]] != silent)
        signature = tuple(part for part in self.signature if part[0] != silent)
        attributes = tuple(part for part in self.attributes if names[part[0][0]] != silent)
        digest = hashlib.sha256(repr((signature, attributes)).encode()).hexdigest()[:8]
        return f"{constants};{digest}"


@cache
def _binder(kernel: Any, architecture: str) -> tuple[Any, Callable]:
    """Triton's backend for an architecture, and the function by which a launch of ``kernel`` on it finds its specialisation."""
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(target(architecture))
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


@dataclass(frozen=True)
class Resources:
    """One compiled kernel.  ``spilled``: bytes of stack or scratch memory of a thread; ``shared`` in bytes.

    ``blocks``: how many of its programs a multiprocessor holds at a time.
    """

    kernel: str
    architecture: str
    warps: int
    stages: int
    registers: int
    shared: int
    spilled: int
    blocks: int
    key: str
    cases: tuple[str, ...]

    @property
    def launches(self) -> bool:
        """Whether every device that the architecture's entries serve can start it."""
        return self.shared <= SHARED_LIMIT[table_architecture(self.architecture)]

    @property
    def fits(self) -> bool:
        """Whether it launches and keeps its numbers in registers."""
        return self.launches and not self.spilled


def case_launches(case: Case, architecture: str) -> list[Launch]:
    """What the launcher of a case starts on an architecture, in bf16; nothing runs."""
    with trace_launches(architecture) as launches:
        case.kernel(*case.arguments(Factory(torch.device("meta"), torch.bfloat16)))
    return launches


def runs_on(case: Case, architecture: str) -> bool:
    """Whether an architecture, of the table or of a device, has what the case needs."""
    name = architecture.removeprefix("sm_")
    return case.minimum_capability <= (int(name) if name.isdecimal() else CAPABILITY[table_architecture(architecture)])


def traced(
    architecture: str, chosen: Callable[[Case], bool] = lambda case: True
) -> dict[Specialisation, tuple[Launch, list[str]]]:
    """Every distinct specialisation that the catalogue launches, with one launch and the cases that need it."""
    found: dict[Specialisation, tuple[Launch, list[str]]] = {}
    for size in SIZES:
        for case in filter(chosen, cases(size)):
            if runs_on(case, architecture) and not case.vendor:
                for launch in case_launches(case, architecture):
                    found.setdefault(Specialisation.of(launch, architecture), (launch, []))[1].append(case.name)
    return found


def target(architecture: str) -> Any:
    """Triton's name for an architecture."""
    from triton.backends.compiler import GPUTarget

    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


def compile_specialisation(specialisation: Specialisation, launch: Launch, names: Iterable[str]) -> Resources:
    """Compile for a target that need not be present, and read what the binary uses."""
    architecture, compiled = specialisation.architecture, forms(specialisation, launch)
    read = _read_nvidia if "cubin" in compiled.asm else _read_amd
    registers, spilled = read(compiled.asm)
    shared = compiled.metadata.shared
    return Resources(
        kernel=launch.name,
        architecture=architecture,
        warps=launch.warps,
        stages=launch.stages,
        registers=registers,
        shared=shared,
        spilled=spilled,
        blocks=MULTIPROCESSORS[table_architecture(architecture)].resident_blocks(launch.warps, registers, shared),
        key=specialisation.key,
        cases=tuple(names),
    )


def forms(specialisation: Specialisation, launch: Launch) -> Any:
    """Triton's compiled kernel, with every form that it took on the way."""
    options, chip = launch_options(launch.warps, launch.stages, launch.dependent), target(specialisation.architecture)
    return triton.compile(specialisation.source(launch.kernel), target=chip, options=options)


def instructions(specialisation: Specialisation, launch: Launch) -> Counter[str]:
    """How often each instruction stands in the binary of an NVIDIA architecture, by the first part of its name (HGMMA).

    Of the special functions by both parts (MUFU.RCP).
    """
    text = _dumped(forms(specialisation, launch).asm["cubin"], "--dump-sass")
    return Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?((?:MUFU\.)?[A-Z][A-Z0-9]*)", text))


def sum_layouts(specialisation: Specialisation, launch: Launch) -> tuple[str, ...]:
    """How the elements of a tensor lie in threads where fp32 numbers are summed, sum by sum: what decides their order."""
    text = forms(specialisation, launch).asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", text, re.MULTILINE))
    return tuple(layouts[name] for name in re.findall(r"\}\) : \(tensor<\w+xf32, (#\w+)>\) -> f32", text))


def _dumped(cubin: bytes, what: str) -> str:
    """What the cuobjdump inside the triton package says of a binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), what, file.name], capture_output=True, text=True, check=True).stdout


def _read_nvidia(asm: dict[str, Any]) -> tuple[int, int]:
    """(registers, bytes of stack and local memory)."""
    text = _dumped(asm["cubin"], "--dump-resource-usage")
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text).groups())
    return registers, stack + local


def _read_amd(asm: dict[str, Any]) -> tuple[int, int]:
    """(vector registers, bytes of scratch memory) from the metadata in the assembly.

    A scalar register that is kept in a lane of a vector register counts as spilled there and touches no memory.
    """
    count, scratch = (
        int(re.search(rf"\.{name}:\s+(\d+)", asm["amdgcn"]).group(1)) for name in ("vgpr_count", "private_segment_fixed_size")
    )
    return count, scratch


def allowed_stack(architecture: str) -> int:
    """Bytes that a kernel may spill: none, unless the configurations were timed, where the clock decided."""
    return MEASURED_STACK if PROVENANCE.get(architecture, "").startswith(TIMED) else 0


def acceptable(row: Resources) -> bool:
    """Whether a committed configuration may need what the row says."""
    return row.launches and row.spilled <= allowed_stack(row.architecture)


def source_digest(kernel: Any) -> str:
    """A digest of a kernel's code and of the functions it calls: comments, docstrings and layout do not count."""
    kinds = (tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.STRING)
    tokens = [token.string for token in tokenize.generate_tokens(io.StringIO(kernel.src).readline) if token.type in kinds]
    tokens = [token for token in tokens if not token.startswith('"""')]
    called = (kernel.fn.__globals__.get(name) for name in dict.fromkeys(tokens) if name != kernel.__name__)
    tokens += [source_digest(function) for function in called if isinstance(function, triton.JITFunction)]
    return hashlib.sha256(" ".join(tokens).encode()).hexdigest()[:16]


def source_digests(launches: Iterable[Launch]) -> dict[str, str]:
    """Kernel name -> digest, for every kernel that is launched."""
    kernels = {launch.name: launch.kernel for launch in launches}
    return {name: source_digest(kernels[name]) for name in sorted(kernels)}


def read_sources(path: Path = TABLE_FILE) -> dict[str, str]:
    """The digests of the kernels that the committed table was made from."""
    return json.loads(path.read_text())["sources"]


def read_table(path: Path = TABLE_FILE) -> tuple[str, list[Resources]]:
    """The Triton version of the committed table, and its rows."""
    data = json.loads(path.read_text())
    return data["triton"], [Resources(**row | {"cases": tuple(row["cases"])}) for row in data["rows"]]


def write_table(rows: list[Resources], sources: dict[str, str], path: Path = TABLE_FILE) -> None:
    """One row per line, so that a change shows as the lines that changed."""
    ordered = sorted(rows, key=lambda row: (row.kernel, ARCHITECTURES.index(row.architecture), row.key, row.warps))
    lines = ",\n".join(json.dumps(asdict(row)) for row in ordered)
    head = f'"triton": "{triton.__version__}", "sources": {json.dumps(sources, sort_keys=True)}'
    path.write_text(f'{{{head}, "rows": [\n{lines}\n]}}\n')


def compiled(architecture: str) -> tuple[list[Resources], dict[str, str]]:
    """The rows of an architecture and the digests of its kernels; those that are not acceptable are printed."""
    found, rows = traced(architecture), []
    for specialisation, (launch, names) in found.items():
        row = compile_specialisation(specialisation, launch, names)
        rows.append(row)
        if not acceptable(row):
            print(f"{row.kernel} for {architecture}: {row.spilled} spilled, {row.shared} bytes shared: {names[0]}", flush=True)
    print(f"{architecture}: {len(rows)} kernels", flush=True)
    return rows, source_digests(launch for launch, _ in found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile everything, write the table, and fail if a kernel spills or needs too much shared memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, each for one architecture; 0 needs none")
    jobs = parser.parse_args(arguments).jobs
    if jobs:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(compiled, ARCHITECTURES))
    else:
        parts = list(map(compiled, ARCHITECTURES))
    rows = [row for part, _ in parts for row in part]
    write_table(rows, {name: digest for _, digests in parts for name, digest in digests.items()})
    return int(not all(map(acceptable, rows)))


if __name__ == "__main__":
    sys.exit(main())
