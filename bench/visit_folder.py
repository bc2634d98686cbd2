"""The folder that a visit leaves behind, small and plain enough to be brought back from any machine."""

import json
import os
import re
from pathlib import Path
from typing import Any

MAX_FILES, MAX_BYTES, MAX_DEPTH = 8, 16 * 2**20, 2
NAME = re.compile(r"[A-Za-z0-9._-]+")
KEPT_HEAD, KEPT_TAIL = 2**20, 2**22  # bytes of a log that grew too long
STATE = "visit.json"


def read_state(out: Path) -> dict[str, Any]:
    """What earlier calls did: ``parts`` by name, ``calls``, and what the tuned table is for.

    Raises ``ValueError`` for a file that is not one of this program.
    """
    path = out / STATE
    if not path.exists():
        return {"parts": {}, "calls": []}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to begin a new visit") from None
    if not (isinstance(state, dict) and isinstance(state.get("parts"), dict) and isinstance(state.get("calls"), list)):
        raise ValueError(f"{path} is not the state of a visit; delete it to begin a new one")
    return state


def write_state(out: Path, state: dict[str, Any]) -> None:
    """Replace the state in one step, so that a visit that is ended meanwhile leaves the old one or the new one."""
    new = out / f"{STATE}.new"
    new.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    os.replace(new, out / STATE)


def shorten(log: Path) -> None:
    """Cut the middle out of a log that is too long to be brought back."""
    if log.stat().st_size <= MAX_BYTES:
        return
    data = log.read_bytes()
    left_out = len(data) - KEPT_HEAD - KEPT_TAIL
    log.write_bytes(data[:KEPT_HEAD] + f"\n... {left_out} bytes left out ...\n".encode() + data[-KEPT_TAIL:])


def complaints(out: Path) -> list[str]:
    """What would keep a file of the folder from coming back: its number, its size, its depth or its name."""
    files = sorted(path.relative_to(out) for path in out.rglob("*") if not path.is_dir() or path.is_symlink())
    said = [f"{len(files)} files, more than {MAX_FILES}"] if len(files) > MAX_FILES else []
    for file in files:
        if (out / file).is_symlink() or not (out / file).is_file():
            said.append(f"{file} is not a plain file")
        elif (out / file).stat().st_size > MAX_BYTES:
            said.append(f"{file} has more than {MAX_BYTES // 2**20} MiB")
        if len(file.parts) > MAX_DEPTH + 1:
            said.append(f"{file} lies more than {MAX_DEPTH} folders down")
        if not all(NAME.fullmatch(part) for part in file.parts):
            said.append(f"{str(file)!a} has a name of other characters than letters, digits, dot, dash and underscore")
    return said
