"""The launch table that a visit has tuned: kept in its folder after every entry, and used again on a fresh machine.

While it is in place, the tree's own table lies beside it, under a name that tells what replaced it.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from segue.kernels import launch_table
from segue.kernels.launch_lookup import table_architecture
from segue.kernels.triton_runtime import architecture, triton

INSTALLED = Path(launch_table.__file__)
REPLACED_BY = ".replaced-by-"


def made_for(device: torch.device) -> dict[str, str]:
    """What a tuned table holds for: the architecture of the device and the compiler."""
    return {"architecture": architecture(device), "triton": triton.__version__ if triton else "none"}


def refusal(table: Path, here: Mapping[str, str], there: Mapping[str, str] | None) -> str | None:
    """Why a tuned table cannot be used here; None when it can.

    It must be made for this architecture and compiler, and have every entry that the table of this code has.
    """
    if there != here:
        return f"it was tuned for {_text(there or {})}, and this is {_text(here)}"
    try:
        found = _load(table)
    except Exception as error:  # a file cut short, or written by other code
        return f"it cannot be read: {type(error).__name__}: {error}"
    if missing := _entries(launch_table, here) - _entries(found, here):
        return f"it lacks {len(missing)} entries of this code, among them {min(map(str, missing))}"
    return None


def install(table: Path, installed: Path = INSTALLED) -> None:
    """Put a table where the kernels read it, in one step; processes that start afterwards use it until :func:`restore`.

    Raises ``OSError`` where the tree cannot be written.
    """
    restore(installed)
    data, new = table.read_bytes(), installed.with_name(f"{installed.name}.new")
    # with its time of change, or Python could take the bytecode of the other table for its own
    shutil.copy2(installed, installed.with_name(f"{installed.name}{REPLACED_BY}{_digest(data)}"))
    new.write_bytes(data)
    os.replace(new, installed)


def restore(installed: Path = INSTALLED) -> None:
    """Put the tree's own table back, which a visit that was killed has left aside too.

    A table that was written over the installed one meanwhile is the tree's own, and stays.  Raises ``OSError`` where the tree
    cannot be written.
    """
    for own in installed.parent.glob(f"{installed.name}{REPLACED_BY}*"):
        if own.name.endswith(_digest(installed.read_bytes())):
            os.replace(own, installed)
        else:
            own.unlink()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _text(made: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in made.items()) or "an unknown machine"


def _load(path: Path):
    name = f"{launch_table.__package__}._tuned_table"  # of that package: the table imports the classes beside it
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    cached, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no further folder beside the table
    try:
        specification.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = cached
    return module


def _entries(module, here: Mapping[str, str]) -> set:
    return set(module.TABLE.get(table_architecture(here["architecture"]), ()))
