"""Triton where it is present, and the one place from which kernels are launched, observed and traced.

Every Triton kernel starts through :func:`launch`, so a test can prove what ran (:func:`observe_launches`) and the
ahead-of-time compiler sees exactly the arguments of the launchers without running them (:func:`trace_launches`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the reference functions need no Triton; `unavailable` says why the kernels cannot run
    triton = tl = None
try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:
    TensorDescriptor = None

DEFAULT_ARCHITECTURE = "sm_90"  # whose launch table the interpreter uses
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}  # multiprocessors of a full chip, for traces


def jit(**options) -> Callable:
    """``triton.jit`` with options, or the bare function where Triton is missing (it is then never launched)."""
    return triton.jit(**options) if triton else lambda function: function


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the kernel, its grid, all its arguments by name, and its resources."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return self.kernel.__name__


@dataclass(frozen=True)
class Chip:
    """What kernels are chosen and launched by, of a device that need not be here.

    ``architecture`` as :func:`architecture` gives it; ``processors`` multiprocessors; ``cudnn`` the version of cuDNN as
    PyTorch counts it (91501), 0 where it is missing or switched off.
    """

    architecture: str
    processors: int
    cudnn: int = 0


@dataclass(frozen=True)
class _Trace:
    chip: Chip
    launches: list[Launch]


_observed: ContextVar[list[Launch] | None] = ContextVar("observed", default=None)
_trace: ContextVar[_Trace | None] = ContextVar("trace", default=None)


@contextmanager
def observe_launches() -> Iterator[list[Launch]]:
    """Every launch of this context, as it happens; the kernels run."""
    launches: list[Launch] = []
    token = _observed.set(launches)
    try:
        yield launches
    finally:
        _observed.reset(token)


@contextmanager
def trace_launches(chip: str | Chip) -> Iterator[list[Launch]]:
    """Every launch of this context as it would be on ``chip``; nothing runs, so tensors may be on ``meta``.

    An architecture by name is its full chip.  What is asked here of a CUDA device is answered for this chip.
    """
    trace = _Trace(Chip(chip, PROCESSORS[chip]) if isinstance(chip, str) else chip, [])
    token = _trace.set(trace)
    try:
        yield trace.launches
    finally:
        _trace.reset(token)


def tracing() -> bool:
    """Whether launches are written down here and nothing runs."""
    return _trace.get() is not None


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before Triton was imported)."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def interpreter_obstacle(triton_version: str, numpy_version: str) -> str | None:
    """Why the interpreter of a release of Triton cannot run every kernel beside a release of NumPy; None when it can.

    The bounds of a loop are arrays of one element there, which NumPy no longer converts to integers; later releases unpack
    them.
    """
    found, beside = (tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (triton_version, numpy_version))
    if found >= (3, 7) or beside < (2, 4):
        return None
    return (
        f"the interpreter of Triton {triton_version} fails in loops under NumPy {numpy_version}; "
        "it needs NumPy below 2.4, or Triton 3.7"
    )


def unavailable(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on ``device``; None when they can, and in a trace, where nothing runs."""
    if _trace.get():
        return None
    if triton is None:
        return "triton is not installed"
    if device.type == "cuda":
        return None
    if interpreting():
        return interpreter_obstacle(triton.__version__, version("numpy"))
    return f"Triton has no compiler for device {device.type!r} (TRITON_INTERPRET=1 runs its interpreter there)"


@cache
def _device_architecture(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def architecture(device: torch.device) -> str:
    """``sm_90``, ``gfx942``, ...: the traced architecture, that of the device, or the default under the interpreter."""
    if trace := _trace.get():
        return trace.chip.architecture
    if device.type != "cuda":
        return DEFAULT_ARCHITECTURE
    return _device_architecture(device.index if device.index is not None else torch.cuda.current_device())


def compute_capability(device: torch.device) -> tuple[int, int]:
    """Of the traced chip, or of a CUDA device: (9, 0) for sm_90."""
    if trace := _trace.get():
        return divmod(int(trace.chip.architecture.removeprefix("sm_")), 10)
    return torch.cuda.get_device_capability(device)


def cudnn_version() -> int:
    """The version of cuDNN as PyTorch counts it (91501), 0 without one: that of the traced chip, or of this machine."""
    if trace := _trace.get():
        return trace.chip.cudnn
    return torch.backends.cudnn.version() or 0


@cache
def _device_processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def processors(device: torch.device) -> int:
    """Multiprocessors of the device: the size of a persistent grid.  Two under the interpreter, so that tiles queue."""
    if trace := _trace.get():
        return trace.chip.processors
    if device.type != "cuda":
        return 2
    return _device_processors(device.index if device.index is not None else torch.cuda.current_device())


def launch_options(warps: int, stages: int) -> dict[str, int | bool]:
    """Compiler options of a launch; fused multiply-add is explicit because its default differs between Triton releases."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int = 1) -> None:
    """Start ``kernel`` on the device of its tensors; a grid with a zero does nothing.

    Raises ``RuntimeError`` where Triton cannot run.
    """
    if 0 in grid:
        return
    record = Launch(kernel, grid, arguments, warps, stages)
    if trace := _trace.get():
        trace.launches.append(record)
        return
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    if reason := unavailable(device):
        raise RuntimeError(f"kernel {record.name} cannot run: {reason}")
    if (observed := _observed.get()) is not None:
        observed.append(record)
    options = launch_options(warps, stages)
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](**arguments, **options)
    else:
        kernel[grid](**arguments, **options)


def dense(x: Tensor) -> Tensor:
    """``x``, copied only if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is not less than ``value``."""
    return 1 << (value - 1).bit_length()
