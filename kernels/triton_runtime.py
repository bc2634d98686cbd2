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
DEPENDENT_SINCE = 90  # the first compute capability with programmatic dependent launch
DEPENDENT = "DEPENDENT"  # the argument by which a kernel awaits the one before it, see :func:`dependent_launches`
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}  # multiprocessors of a full chip, for traces


def jit(**options) -> Callable:
    """``triton.jit`` with options, or the bare function where Triton is missing (it is then never launched)."""
    return triton.jit(**options) if triton else lambda function: function


@jit()
def await_previous(DEPENDENT: tl.constexpr):
    """The first statement of every kernel.  Launched dependent, its programs start while the kernel before it ends: here they
    wait until all that it wrote can be seen, and let the next kernel's programs start, which wait in the same place."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the kernel, its grid, all its arguments by name, and its resources; ``dependent`` as
    :func:`dependent_launches` says."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int
    dependent: bool = False

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
_dependent: ContextVar[bool] = ContextVar("dependent", default=False)


@contextmanager
def dependent_launches() -> Iterator[None]:
    """Inside, kernels start while the one before them on the stream ends, where the device can (programmatic dependent launch).

    The same numbers to the bit: a kernel touches memory only after :func:`await_previous`.
    """
    token = _dependent.set(True)
    try:
        yield
    finally:
        _dependent.reset(token)


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


def dependent_obstacle(device: torch.device) -> str | None:
    """Why no kernel on ``device`` can start before the one before it has ended; None when it can."""
    if reason := unavailable(device):
        return reason
    if not tracing() and device.type != "cuda":
        return "Triton's interpreter runs one kernel after the other"
    name = architecture(device)
    if name.startswith("sm_") and int(name.removeprefix("sm_")) >= DEPENDENT_SINCE:
        return None
    return f"programmatic dependent launch needs compute capability 9.0 or later, and this device is {name}"


def launch_options(warps: int, stages: int, dependent: bool = False) -> dict[str, int | bool]:
    """Compiler options of a launch; fused multiply-add is explicit because its default differs between Triton releases."""
    options: dict[str, int | bool] = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return options | {"launch_pdl": True} if dependent else options


def launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int = 1) -> None:
    """Start ``kernel`` on the device of its tensors; a grid with a zero does nothing.

    Raises ``RuntimeError`` where Triton cannot run.
    """
    if 0 in grid:
        return
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    dependent = _dependent.get() and DEPENDENT in kernel.arg_names and not dependent_obstacle(device)
    if dependent:
        arguments = arguments | {DEPENDENT: True}
    record = Launch(kernel, grid, arguments, warps, stages, dependent)
    if trace := _trace.get():
        trace.launches.append(record)
        return
    if reason := unavailable(device):
        raise RuntimeError(f"kernel {record.name} cannot run: {reason}")
    if (observed := _observed.get()) is not None:
        observed.append(record)
    options = launch_options(warps, stages, dependent)
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
