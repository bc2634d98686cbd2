"""The launch table as a source file: written whole, through a temporary file, so that no reader finds half of it."""

import json
import os
from pathlib import Path

from .launch_table import MEASURED, PREFERRED, PROVENANCE, TABLE

TABLE_FILE = Path(__file__).with_name("launch_table.py")
LINE_LENGTH = 128
TABLE_SOURCE = '''"""Launch configurations by architecture, operation and shape class.

Written by ``python -m segue.kernels.tune``.
"""

from .launch import AttentionLaunch, FlatLaunch, LaunchConfig, MatmulLaunch, ReadoutLaunch, RowLaunch

PROVENANCE: dict[str, str] = {}

# what was timed: a digest of all that the outcome of an entry or of a choice between backends depends on, by architecture
MEASURED: dict[str, dict[tuple[str, str, str], str]] = {}

# the backend that was measured to be the fastest, by architecture, operation and shape class
PREFERRED: dict[str, dict[tuple[str, str], str]] = {}

TABLE: dict[str, dict[tuple[str, str], LaunchConfig]] = {}
'''


def table_source() -> str:
    """The tables in memory as the source of ``launch_table.py``, as the formatter would leave it."""

    def mapping(entries: dict, indent: str = "    ") -> str:
        lines = (entry(f"{indent}{source(key)}: ", source(value), indent) for key, value in sorted(entries.items()))
        return "{\n" + "".join(lines) + indent[4:] + "}" if entries else "{}"

    def entry(name: str, text: str, indent: str) -> str:
        if len(name) + len(text) < LINE_LENGTH or "\n" in text:
            return f"{name}{text},\n"
        kind, _, fields = text.removesuffix(")").partition("(")
        return f"{name}{kind}(\n{indent}    {fields}\n{indent}),\n"

    def source(value: object) -> str:
        if isinstance(value, dict):
            return mapping(value, "        ")
        if isinstance(value, tuple):
            return f"({', '.join(map(source, value))})"
        return json.dumps(value) if isinstance(value, str) else repr(value)

    return TABLE_SOURCE.format(mapping(PROVENANCE), mapping(MEASURED), mapping(PREFERRED), mapping(TABLE))


def write_table(path: Path = TABLE_FILE) -> None:
    """Put the tables in memory in the place of ``path``; what was there stays until all is written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(table_source())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
