"""Launch configurations: frozen dataclasses, looked up by operation, shape class and architecture.

The numbers live in :mod:`segue.kernels.launch_table`; nothing is tuned at run time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class RowLaunch:
    """A kernel that walks whole rows: ``rows`` of them per program."""

    rows: int
    warps: int


@dataclass(frozen=True)
class FlatLaunch:
    """An elementwise kernel: ``block`` elements per program."""

    block: int
    warps: int


@dataclass(frozen=True)
class AttentionLaunch:
    """``block_q`` queries per program, ``block_k`` keys per iteration, ``stages`` key blocks in flight."""

    block_q: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class MatmulLaunch:
    """An output tile of ``block_m`` x ``block_n``; ``block_k`` is counted in 16-bit elements; ``group`` row tiles share L2."""

    block_m: int
    block_n: int
    block_k: int
    group: int
    warps: int
    stages: int


@dataclass(frozen=True)
class ReadoutLaunch:
    """``tokens`` per program, ``width`` hidden channels per iteration."""

    tokens: int
    width: int
    warps: int
    stages: int


LaunchConfig = RowLaunch | FlatLaunch | AttentionLaunch | MatmulLaunch | ReadoutLaunch

Key = tuple[str, str]  # operation, shape class

_override: ContextVar[dict[Key, LaunchConfig] | None] = ContextVar("override", default=None)
_lookups: ContextVar[set[Key] | None] = ContextVar("lookups", default=None)


def size_class(prefix: str, size: int, bounds: tuple[int, ...]) -> str:
    """``prefix`` and the smallest bound that is not less than ``size``; the last bound takes everything larger."""
    return f"{prefix}{next((bound for bound in bounds if size <= bound), bounds[-1])}"


def table_architecture(architecture: str) -> str:
    """The architecture of the launch table that serves a device.

    Chips with less shared memory than their generation's largest (sm_86, sm_89, sm_120) use the entries of sm_80, which
    stay below 99 KiB.  Raises ``ValueError`` for a device that no entry serves.
    """
    if architecture.startswith("gfx"):
        return "gfx942"
    generation = int(architecture.removeprefix("sm_")) // 10
    served = {8: "sm_80", 9: "sm_90", 10: "sm_100", 11: "sm_80", 12: "sm_80"}
    if generation not in served:
        raise ValueError(f"the Triton kernels need compute capability 8.0 or later, and this device is {architecture}")
    return served[generation]


def launch_config(operation: str, shape_class: str, architecture: str) -> LaunchConfig:
    """The frozen configuration of ``operation`` for a shape class on an architecture."""
    from .launch_table import TABLE

    if (lookups := _lookups.get()) is not None:
        lookups.add((operation, shape_class))
    override = _override.get() or {}
    if (operation, shape_class) in override:
        return override[operation, shape_class]
    return TABLE[table_architecture(architecture)][operation, shape_class]


@contextmanager
def using(operation: str, shape_class: str, config: LaunchConfig) -> Iterator[None]:
    """Replace one configuration inside the context: how the tuner tries candidates."""
    token = _override.set((_override.get() or {}) | {(operation, shape_class): config})
    try:
        yield
    finally:
        _override.reset(token)


@contextmanager
def recorded_lookups() -> Iterator[set[Key]]:
    """The entries that were looked up inside the context."""
    keys: set[Key] = set()
    token = _lookups.set(keys)
    try:
        yield keys
    finally:
        _lookups.reset(token)
