"""A table of images, CSV or TSV: a column of paths relative to it, one of classes, and any number of superclasses' columns."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .classes import Classes, listed, tier_names
from .labelled_files import LabelledFiles

SUFFIXES = {".csv": ",", ".tsv": "\t"}
IMAGE, CLASS, PARENT = ("image", "file", "filename", "path"), ("class", "label", "species"), ("parent", "superclass")
MOST = 1_000_000  # larger numbers name classes, and are no labels: a table of labels would have a row for each below


def fits_table(path: Path) -> bool:
    """Whether ``path`` is a table with a column of images and one of classes."""
    if path.suffix.lower() not in SUFFIXES:
        return False
    try:
        header = [name.lower() for name in _rows(path)[0]]
    except (ValueError, OSError):
        return False
    return any(name in IMAGE for name in header) and any(name in CLASS for name in header)


def read_image_table(path: Path, tier: int | str | None = None) -> LabelledFiles:
    """The images of a table, in the order of its rows.

    Classes that are whole numbers are the labels themselves; other names are numbered in their order.  ``tier`` is the column
    of the superclasses, by default ``parent`` or ``superclass`` where there is one; 0 is none; ``genus,family`` takes the
    second for a tier above them, and so on.  Raises ``ValueError`` for columns that are not there, rows that are not whole, a
    class with two superclasses, an image with two classes, and ``FileNotFoundError`` for images that are not there, with their
    number and first names.
    """
    header, *rows = _rows(path)
    image, name = _column(path, header, IMAGE, "images"), _column(path, header, CLASS, "classes")
    column = _tier_column(path, header, tier)
    for number, row in enumerate(rows, 2):
        if len(row) != len(header) or not all(row[place].strip() for place in (image, name, *column)):
            raise ValueError(f"row {number} of {path} is not whole: {row!r} under the columns {', '.join(header)}")
    names = tuple(row[image].strip().replace("\\", "/") for row in rows)
    sizes = _sizes(path, names)
    values = [row[name].strip() for row in rows]
    labels, classes, notes = _classes(path, values)
    _check_one_class(path, names, values)
    if column:
        above = [(header[place], [row[place].strip() for row in rows]) for place in column]
        classes = _with_parents(path, labels, classes, values, above)
    return LabelledFiles(path.parent, names, sizes, labels, classes, notes)


def _rows(path: Path) -> list[list[str]]:
    """Header and rows, without empty ones."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, delimiter=SUFFIXES[path.suffix.lower()]) if any(map(str.strip, row))]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table in UTF-8: {error}") from None
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows below a header")
    return [[name.strip() for name in rows[0]], *rows[1:]]


def _column(path: Path, header: Sequence[str], known: Sequence[str], of: str) -> int:
    found = [place for place, name in enumerate(header) if name.lower() in known]
    if len(found) != 1:
        have = "several" if found else "no"
        raise ValueError(f"{path} has {have} columns of {of}: one of {', '.join(known)} is needed; it has {', '.join(header)}")
    return found[0]


def _tier_column(path: Path, header: Sequence[str], tier: int | str | None) -> list[int]:
    """The places of the columns of the superclasses and of the tiers above them, or nothing."""
    if isinstance(tier, int) and tier:
        raise ValueError(
            f"the superclasses of a table are a column of it: {', '.join(header)}; tier must be its name, got {tier}"
        )
    if isinstance(tier, str):
        return [_named_column(path, header, name) for name in tier_names(tier) or [tier]]
    found = [place for place, name in enumerate(header) if name.lower() in PARENT] if tier is None else []
    if len(found) > 1:
        raise ValueError(
            f"{path} has several columns of superclasses, {listed([header[p] for p in found])}; choose one by tier"
        )
    return found


def _named_column(path: Path, header: Sequence[str], wanted: str) -> int:
    found = [place for place, name in enumerate(header) if name.lower() == wanted.lower()]
    if len(found) != 1:
        raise ValueError(f"{path} has no column {wanted!r}; it has {', '.join(header)}")
    return found[0]


def _sizes(path: Path, names: Sequence[str]) -> tuple[int, ...]:
    absolute = [name for name in names if name.startswith("/")]
    if absolute:
        raise ValueError(f"{path} names {listed(absolute)}; paths must be relative to the table")
    sizes, missing = [], []
    for name in names:
        file = path.parent / name
        if file.is_file():
            sizes.append(file.stat().st_size)
        else:
            missing.append(name)
    if missing:
        raise FileNotFoundError(f"{len(missing):,} of {len(names):,} images of {path} are not there: {listed(missing)}")
    return tuple(sizes)


def _check_one_class(path: Path, names: Sequence[str], values: Sequence[str]) -> None:
    of: dict[str, str] = {}
    for name, value in zip(names, values, strict=True):
        if of.setdefault(name, value) != value:
            raise ValueError(f"{path} gives {name!r} two classes, {of[name]!r} and {value!r}")


def _classes(path: Path, values: Sequence[str]) -> tuple[Tensor, Classes, tuple[str, ...]]:
    if all(re.fullmatch(r"-?\d+", value) for value in values):
        numbers = [int(value) for value in values]
        if not 0 <= min(numbers) <= max(numbers) < MOST:
            raise ValueError(
                f"classes that are whole numbers are labels and must lie in [0, {MOST:,}); "
                f"{path} has {min(numbers)} to {max(numbers)}"
            )
        count = max(numbers) + 1
        absent = count - len(set(numbers))
        notes = (f"{absent:,} of the labels 0 to {count - 1:,} have no image in {path.name}",) if absent else ()
        return torch.tensor(numbers), Classes(count), notes
    distinct = sorted(set(values))
    place = {value: number for number, value in enumerate(distinct)}
    return torch.tensor([place[value] for value in values]), Classes(len(distinct), tuple(distinct)), ()


def _with_parents(
    path: Path, labels: Tensor, classes: Classes, values: Sequence[str], above: Sequence[tuple[str, Sequence[str]]]
) -> Classes:
    """``classes`` with the superclass of each, and its ancestors above: by tier the column's name and values, row by row."""
    found = [_ancestors(path, column, labels, classes, values, parents) for column, parents in above]
    (numbered, order), *further = found
    try:
        return Classes(classes.count, classes.names, numbered, order, tuple(tier for tier, _ in further))
    except ValueError as error:
        raise ValueError(f"the tiers {', '.join(column for column, _ in above)} of {path} are no tree: {error}") from None


def _ancestors(
    path: Path, column: str, labels: Tensor, classes: Classes, values: Sequence[str], parents: Sequence[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The ancestor of every class in one column, which has one for each, and one alone, and the names of the ancestors."""
    order = sorted(set(parents))
    of: dict[int, str] = {}
    for label, value, parent in zip(labels.tolist(), values, parents, strict=True):
        if of.setdefault(label, parent) != parent:
            raise ValueError(f"{path} gives the class {value!r} two of {column!r}, {of[label]!r} and {parent!r}")
    absent = classes.count - len(of)
    if absent:
        raise ValueError(
            f"{absent:,} labels below {classes.count - 1:,} have no row in {path}, so their {column!r} is not known"
        )
    place = {name: number for number, name in enumerate(order)}
    return tuple(place[of[label]] for label in range(classes.count)), tuple(order)
