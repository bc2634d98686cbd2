"""What an output that grows over several commands was begun with, which may not change before its end."""

import json
from pathlib import Path
from typing import Any

from ..files import written_first


def begin_or_go_on(file: Path, record: dict, output: Path) -> None:
    """Write ``record`` into ``file``, whole, or see that it is what ``output`` was begun with.

    Of several processes that begin at once one writes it, and the others see.  Raises ``ValueError`` with the first thing that
    differs.
    """
    text = json.dumps(record, sort_keys=True)
    if not file.exists() and written_first(file, text):
        return
    before, now = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
    if differences := _differences(before, now):
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
