"""The table of ``segue batch``: rows of CSV, JSON lines or Parquet, each with a name that its picture is called by."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.engine.argument_names import did_you_mean

ID, LABEL, PROMPT = "id", "label", "prompt"
COLUMNS = (ID, LABEL, PROMPT, "negative_prompt", "guidance", "seed", "steps", "solver", "schedule", "height", "width")
RENAMED = {  # what other tools call a column of ours
    **dict.fromkeys(("class", "class_id", "classes", "labels"), LABEL),
    **dict.fromkeys(("text", "caption", "prompts"), PROMPT),
    **dict.fromkeys(("rule", "guidance_scale", "cfg", "cfg_scale", "scale"), "guidance"),
    **dict.fromkeys(("num_inference_steps", "num_steps"), "steps"),
    **dict.fromkeys(("sampler", "scheduler"), "solver"),
    "negative": "negative_prompt",
    "seeds": "seed",
    "name": ID,
}
DIGITS = 6  # of the number of a row that has no id
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,98}[A-Za-z0-9_-])?")  # a file's on every system, no hidden one


@dataclass(frozen=True)
class Row:
    """``number`` counts from 0; ``values`` are those of known columns that are not empty, ``others`` those passed through."""

    number: int
    id: str
    values: Mapping[str, Any]
    others: Mapping[str, Any]


def read_table(path: Path, pass_through: bool = False) -> list[Row]:
    """The rows of a table, with ids of their own: those of the column ``id``, else their numbers.

    Raises ``ValueError`` or ``OSError`` in one sentence for a table that cannot be read as a whole: a column that is unknown,
    unless it is to be passed through, a line that is none, an id that is missing, taken or no name of a file.  What a value
    of a row says is looked at later, and is the row's own affair.
    """
    kind = path.suffix.lower()
    if kind not in _READERS:
        raise ValueError(f"a table is one of {', '.join(_READERS)}, got {path}")
    columns, records = _READERS[kind](path)
    if not pass_through:
        _refuse_unknown(path, columns)
    if LABEL not in columns and PROMPT not in columns:
        raise ValueError(f"{path} has neither a column {LABEL} nor {PROMPT}; it has {', '.join(columns) or 'none'}")
    rows, taken = [], dict[str, int]()
    for number, record in enumerate(records):
        given = {name: value for name, value in record.items() if not _missing(value)}
        own = _id(path, number, given.pop(ID, None)) if ID in columns else f"{number:0{DIGITS}d}"
        first = taken.setdefault(own.casefold(), number)  # some file systems take them for one name
        if first != number:
            raise ValueError(f"{path} has the id {own!r} twice, in rows {first} and {number}")
        others = {name: value for name, value in record.items() if name not in COLUMNS}
        rows.append(Row(number, own, {name: given[name] for name in COLUMNS if name in given}, others))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _missing(value: Any) -> bool:
    """Whether a cell is empty: nothing, blank text, or the NaN that data frames put there."""
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value))


def _id(path: Path, number: int, value: Any) -> str:
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not _NAME.fullmatch(text):
        given = "nothing" if value is None else repr(value)
        raise ValueError(f"an id names a file: up to 100 letters, digits and _.- of ASCII; row {number} of {path} has {given}")
    return text


def _refuse_unknown(path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            ours = RENAMED.get(name.lower())
            hint = f"it is called {ours} here" if ours else did_you_mean(name, COLUMNS)
            known = hint or f"known: {', '.join(COLUMNS)}"
            raise ValueError(f"{path} has the unknown column {name!r}; {known} (--pass-through copies unknown ones)")


# --- formats ---------------------------------------------------------------------------------------------------------

Records = tuple[list[str], Iterator[dict[str, Any]]]  # the names of the columns, and the cells of each row by them


def _read_csv(path: Path) -> Records:
    """Text under a header; every line has a cell for each column."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            lines = list(csv.reader(file, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from None
    columns = [name.strip() for name in lines[0]] if lines else []
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise ValueError(f"{path} has the column {repeated.pop()!r} twice")
    rows = [line for line in lines[1:] if line]
    for number, line in enumerate(rows):
        if len(line) != len(columns):
            raise ValueError(f"row {number} of {path} has {len(line)} cells, and its header {len(columns)}")
    return columns, (dict(zip(columns, line, strict=True)) for line in rows)


def _read_json_lines(path: Path) -> Records:
    """An object on each line; a row may leave columns out."""
    records: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON may hold U+2028
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} of {path} is no JSON object: {line.strip()[:60]!r}")
        records.append(record)
    return list(dict.fromkeys(name for record in records for name in record)), iter(records)


def _read_parquet(path: Path) -> Records:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow: pip install 'segue[ray]'") from None
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    return table.column_names, iter(table.to_pylist())


_READERS: dict[str, Callable[[Path], Records]] = {
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
