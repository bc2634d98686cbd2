"""The launch configuration of an operation, looked up by shape class and architecture; nothing is tuned at run time."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from .launch import Key, LaunchConfig
from .launch_table import TABLE
from .shape_class import nearest

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
    entry = TABLE[served].get(key)
    return entry or TABLE[served][operation, stand_in(served, operation, shape_class)]


@cache
def stand_in(served: str, operation: str, shape_class: str) -> str:
    """The class whose entry serves a class that has none.  Raises ``KeyError`` with the key where there is none either."""
    found = nearest(shape_class, [known for other, known in TABLE[served] if other == operation])
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
