"""What the tuner has timed already: a digest for each item of its agenda, kept with the table that holds the outcome."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType

import torch

from .agenda import Choice, eligible_backends, lookups, users
from .candidates import candidates
from .launch import Key
from .launch_lookup import launch_config, table_architecture
from .launch_table import MEASURED, PREFERRED, TABLE
from .resources import case_launches, runs_on, source_digests
from .triton_runtime import triton

ENTRY, CHOICE = "entry", "choice"


def name_of(item: Key | Choice) -> tuple[str, str, str]:
    """What an item of the agenda is recorded by; an entry and a choice may be of the same operation and class."""
    return (CHOICE, item.operation, item.shape_class) if isinstance(item, Choice) else (ENTRY, *item)


def outcome_digest(item: Key | Choice, card: str, architecture: str) -> str:
    """A digest of what the outcome depends on: card, versions, what competes, on which cases, and the kernels' sources.

    Of a choice also the configurations in which its own kernel competes.
    """
    served = table_architecture(architecture)
    alike = item.cases if isinstance(item, Choice) else users(served)[item]
    own = [case for case in alike if not case.vendor and runs_on(case, architecture)]
    launches = [launch for case in own for launch in case_launches(case, architecture)]
    competing, configured = (eligible_backends(item.operation), own) if isinstance(item, Choice) else (candidates(item), ())
    entries = sorted({key for case in configured for key in lookups(case, served)})
    configs = [(key, launch_config(*key, served)) for key in entries]
    names, versions = [case.name for case in alike], (torch.__version__, triton.__version__)
    found = (card, versions, competing, names, configs, source_digests(launches))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def is_recorded(item: Key | Choice, card: str, architecture: str) -> bool:
    """Whether the tables in memory hold the outcome of an item, timed under the same conditions."""
    record = MEASURED.get(table_architecture(architecture), {}).get(name_of(item))
    return record is not None and record == outcome_digest(item, card, architecture)


def take_over(path: Path, served: str) -> None:
    """Put every outcome that the table at ``path`` records for an architecture into the tables in memory.

    Raises ``ValueError`` where the file is no launch table.
    """
    kept = _loaded(path)
    for name, digest in getattr(kept, "MEASURED", {}).get(served, {}).items():
        kind, key = name[0], name[1:]
        if kind == CHOICE:
            PREFERRED.setdefault(served, {})[key] = kept.PREFERRED[served][key]
        else:
            TABLE[served][key] = kept.TABLE[served][key]
        MEASURED.setdefault(served, {})[name] = digest


def _loaded(path: Path) -> ModuleType:
    """The file as a module beside the one that it is to replace; from its text, as a cache may be of another second."""
    module = ModuleType("launch_table")
    module.__package__ = __package__
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        if not (isinstance(module.TABLE, dict) and isinstance(module.PREFERRED, dict)):
            raise TypeError("its tables are no dictionaries")
    except Exception as error:  # whatever a file of other contents raises
        raise ValueError(f"{path} is no launch table: {type(error).__name__}: {error}") from error
    return module
