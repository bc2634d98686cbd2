"""Launch configurations: frozen dataclasses, looked up by operation, shape class and architecture.

The numbers live in :mod:`segue.kernels.launch_table`; nothing is tuned at run time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

from .shape_class import nearest


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
    """The frozen configuration of ``operation`` for a shape class on an architecture.

    A class without an entry is served by the nearest one that has one.  Raises ``KeyError`` where none may stand in.
    """
    key = (operation, shape_class)
    if (lookups := _lookups.get()) is not None:
        lookups.add(key)
    override = _override.get()
    if override and key in override:
        return override[key]
    served = table_architecture(architecture)
    entry = _tables()[served].get(key)
    return entry or _tables()[served][operation, stand_in(served, operation, shape_class)]


def _tables() -> dict[str, dict[Key, LaunchConfig]]:
    from .launch_table import TABLE  # which is written in terms of this module

    return TABLE


@cache
def stand_in(served: str, operation: str, shape_class: str) -> str:
    """The class whose entry serves a class that has none.  Raises ``KeyError`` with the key where there is none either."""
    found = nearest(shape_class, [known for other, known in _tables()[served] if other == operation])
    if found is None:
        raise KeyError((operation, shape_class))
    return found


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
