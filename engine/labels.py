"""Classes by number or by name: ``3``, ``0-7``, ``0-23:2``, ``all``, species, genera, synonyms."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segue.models.spec import SiTSpec

from .numeric_input import whole_number
from .rules.integers import parse_integers
from .saved_files import PIPELINE_FILE, pipeline_parts

SYNONYMS = ","  # between the names of one class, as in ImageNet's "tench, Tinca tinca"


def check_labels(labels: Any, spec: SiTSpec) -> list[int]:
    """Labels in range: of numbers and names in a list, or of text as :func:`parse_labels` reads it.

    A name stands for its class, or for all classes of the superclass that it names.  Raises ``TypeError`` or ``ValueError``.
    """
    if isinstance(labels, str):
        return parse_labels(labels, spec.num_classes, spec.class_names, spec.name)
    what = f"labels of the class-label model {spec.name}"
    if not hasattr(labels, "__iter__") or getattr(labels, "ndim", 1) == 0:
        raise TypeError(f"{what} must be a list of whole numbers or names, got {labels!r}")
    found: list[int] = []
    for label in labels:
        if isinstance(label, str):
            found += _labels_named(label.strip(), spec.num_classes, spec.class_names, spec.name)
        else:
            found.append(whole_number(label, f"{what} must be whole numbers or names"))
    if not found:
        raise ValueError("labels is empty; give at least one label")
    top = spec.num_classes - 1
    for label in found:
        if not 0 <= label <= top:
            raise ValueError(f"label {label} is out of range: {spec.name} has classes 0 to {top}")
    return found


def parse_labels(text: str, classes: int, names: Sequence[str], model: str) -> list[int]:
    """Labels from numbers, ranges, ``all``, class names or the first word of class names (a genus), comma-separated.

    ``classes`` is the number of classes of ``model`` and ``names`` what they are called (empty: they have no names).
    Raises ``ValueError`` for a name or number that is none of them.
    """
    if text.strip() in names:  # with its synonyms
        return _labels_named(text.strip(), classes, names, model)
    labels: list[int] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if piece == "all":
            labels += range(classes)
        elif piece[:1].isdigit():
            labels += parse_integers(piece)
        else:
            labels += _labels_named(piece, classes, names, model)
    for label in labels:
        if label >= classes:
            raise ValueError(f"class {label} is out of range: {model} has classes 0 to {classes - 1}")
    return labels


def _labels_named(name: str, classes: int, names: Sequence[str], model: str) -> list[int]:
    """The class of a name or synonym, as it is written or in other letters; else those of a genus."""
    for pieces, fold in ((_whole, str), (_all_names, str), (_all_names, str.casefold)):
        found = [label for label, known in enumerate(names) if fold(name) in map(fold, pieces(known))]
        if len(found) > 1:
            raise ValueError(f"{model} has several classes {name!r}: choose {' or '.join(map(str, found))} by its number")
        if found:
            return found
    if not any(SYNONYMS in known for known in names):
        genus = [label for label, known in enumerate(names) if known.casefold().split()[:1] == [name.casefold()]]
        if genus:
            return genus
    known = f"0 to {classes - 1}, all" + (f", or names such as {names[0]!r}" if names else "; its classes have no names")
    raise ValueError(f"{model} has no class {name!r}; it has {known}")


def _whole(known: str) -> list[str]:
    return [known]


def _all_names(known: str) -> list[str]:
    return [known, *(piece.strip() for piece in known.split(SYNONYMS))]


def saved_class_names(folder: str | Path, classes: int) -> tuple[str, ...]:
    """The names in the index of a saved pipeline (``id2label``), by number; empty where it has none.

    Raises ``ValueError`` for names that are not those of ``classes`` classes.
    """
    named = pipeline_parts(Path(folder)).get("id2label") if Path(folder).is_dir() else None
    if not named:
        return ()
    if not isinstance(named, dict) or set(named) != {str(label) for label in range(classes)}:
        count = len(named) if hasattr(named, "__len__") else named
        raise ValueError(f"id2label of {Path(folder) / PIPELINE_FILE} must name classes 0 to {classes - 1}, got {count} names")
    return tuple(str(named[str(label)]) for label in range(classes))


def pipe_class_names(labels: Mapping[str, int] | None, classes: int) -> tuple[str, ...]:
    """The names of a live ``DiTPipeline``, whose ``labels`` has the number of each synonym, if it has any.

    A class whose names are all those of a later one, as ImageNet's first crane, is there ``class 134``.
    """
    found: dict[int, list[str]] = {}
    for name, label in (labels or {}).items():
        found.setdefault(label, []).append(name)
    return tuple(", ".join(found.get(label, [f"class {label}"])) for label in range(classes)) if found else ()
