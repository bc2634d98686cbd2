"""What an output that grows over several commands was begun with, which may not change before its end."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import written_first

ASKED = "asked"  # the key of what is kept beside a record


def begin_or_go_on(file: Path, record: dict, output: Path, asked: Mapping[str, Any] | None = None) -> None:
    """Write ``record`` into ``file``, whole, or see that it is what ``output`` was begun with.

    Of several processes that begin at once one writes it, and the others see.  ``asked`` is how the first asked for it, which
    others may do otherwise.  Raises ``ValueError`` with the first thing that differs, or if ``file`` cannot be read.
    """
    text = json.dumps(record | ({} if asked is None else {ASKED: asked}), sort_keys=True)
    if not file.exists() and written_first(file, text):
        return
    check_same(begun_with(file, output), json.loads(text), output)


def begun_with(file: Path, output: Path) -> dict:
    """The record that ``output`` was begun with, and what was ``asked``.  Raises ``ValueError`` if ``file`` holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {found!r}")
        return found
    except ValueError as error:
        raise ValueError(
            f"{file} does not say any more what {output} was begun with: {error}; remove it to go on as asked for now"
        ) from None


def check_same(before: dict, now: dict, output: Path) -> None:
    """Raise ``ValueError`` with the first thing that differs between two records of ``output``."""
    if differences := _differences(*({name: said[name] for name in said if name != ASKED} for said in (before, now))):
        name, (old, new) = next(iter(differences.items()))
        raise ValueError(f"{output} was begun with {name} {old!r}, and cannot go on with {new!r}")


def _differences(before: dict, now: dict) -> dict[str, tuple[Any, Any]]:
    """What two records disagree on, by its innermost name; single values before lists, which are long to read."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in before.keys() | now.keys():
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differences(old, new)
        elif old != new:
            found[name] = (old, new)
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[1][0], list), item[0])))
