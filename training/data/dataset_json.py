"""The file ``dataset.json`` beside images or latents: ``labels``, a list of [name, label], as EDM and REPA write it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.models.checkpoint_files import read_json

from .classes import Classes, listed

FILE = "dataset.json"
# keys of Segue's own beside the labels
CLASS_NAMES, PARENTS, PARENT_NAMES, TIERS = "class_names", "parents", "parent_names", "tiers"


@dataclass(frozen=True)
class Listing:
    """What a ``dataset.json`` says: labels by name, the classes, and the keys beside."""

    path: Path
    labels: Mapping[str, int]
    classes: Classes
    further: Mapping[str, Any] = field(default_factory=dict)

    def labels_of(self, names: Mapping[str, int], what: str) -> Tensor:
        """Labels [n] int64 of files by name; ``ValueError`` with numbers and first names for a file without a label, or a label
        without a file."""
        without = [name for name in names if name not in self.labels]
        lost = [name for name in self.labels if name not in names]
        if without or lost:
            parts = [f"{len(without):,} {what} have no label in it ({listed(without)})"] if without else []
            parts += [f"{len(lost):,} labels have no file ({listed(lost)})"] if lost else []
            raise ValueError(f"{self.path} does not fit its folder: {'; '.join(parts)}")
        return torch.tensor([self.labels[name] for name in names])

    def classes_with(self, tier: int | str | None) -> Classes:
        """The classes, whose superclasses were chosen when the file was written: ``tier`` 0 leaves them out."""
        if tier not in (None, 0):
            raise ValueError(f"the superclasses stand in {self.path}; tier must be 0, which leaves them out, got {tier!r}")
        return self.classes if tier is None else self.classes.without_parents


def read_listing(path: Path) -> Listing:
    """Read a ``dataset.json``.  Raises ``ValueError`` for labels that are null, no whole numbers, or given twice."""
    content = read_json(path)
    pairs = content.get("labels")
    if pairs is None:
        raise ValueError(
            f"{path} has no labels (they are {'null' if 'labels' in content else 'not there'}); classes are needed"
        )
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"labels of {path} must be a list of pairs [name, label]")
    labels: dict[str, int] = {}
    for name, label in pairs:
        if not isinstance(name, str) or type(label) is not int or label < 0:
            raise ValueError(f"labels of {path} must be whole numbers from 0 by name, got {name!r}: {label!r}")
        if name in labels:
            raise ValueError(f"{path} gives {name!r} two labels, {labels[name]} and {label}")
        labels[name] = label
    return Listing(path, labels, _classes(path, content, max(labels.values()) + 1), content)


def _classes(path: Path, content: Mapping[str, Any], least: int) -> Classes:
    """The classes that the keys beside the labels name, or as many as the labels need."""
    names, parents = tuple(content.get(CLASS_NAMES) or ()), tuple(content.get(PARENTS) or ())
    count = max(len(names), len(parents), least)
    try:
        tiers = tuple(map(tuple, content.get(TIERS) or ()))
        return Classes(count, names, parents, tuple(content.get(PARENT_NAMES) or ()), tiers)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has labels below {least} and does not fit them: {error}") from None


def listing_text(labels: Mapping[str, int], classes: Classes, further: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ``dataset.json``: what :func:`read_listing` reads."""
    named = {CLASS_NAMES: list(classes.names), PARENTS: list(classes.parents), PARENT_NAMES: list(classes.parent_names)}
    named |= {TIERS: [list(tier) for tier in classes.tiers]} if classes.tiers else {}
    return {"labels": [[name, label] for name, label in labels.items()], **named, **further}
