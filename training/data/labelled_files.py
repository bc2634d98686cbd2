"""Files with a label each, wherever the labels came from, and the files of a folder with their sizes."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from .classes import Classes

DEEPEST = 32  # levels of folders; a folder that holds a link to itself has no end


@dataclass(frozen=True, eq=False)
class LabelledFiles:
    """Files by ``names`` relative to ``root``, with ``/``, their ``sizes`` in bytes and ``labels`` [n] int64.

    ``notes`` are what was decided or left out, a sentence each.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: Tensor
    classes: Classes
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def path(self, item: int) -> Path:
        return self.root / self.names[item]

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of names, sizes, labels and superclasses: the same wherever the folder lies."""
        classes = self.classes
        tiers = (classes.tiers,) if classes.tiers else ()  # files without them keep their digests
        digest = hashlib.sha256(repr((classes.count, classes.parents, *tiers)).encode())
        for name, size, label in zip(self.names, self.sizes, self.labels.tolist(), strict=True):
            digest.update(f"{name}\0{size}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def files_under(root: Path) -> dict[str, int]:
    """Size in bytes of every file in ``root`` and below, by its name relative to it with ``/``, in the order of the names.

    Links are followed; what is hidden is left out.  Raises ``OSError``, and ``ValueError`` for folders without an end.
    """
    return dict(sorted(_walk(root, "", 0)))


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    if depth > DEEPEST:
        raise ValueError(f"{folder} lies {DEEPEST} folders deep; a link to a folder above it has no end")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", depth + 1)
            elif entry.is_file():
                yield f"{prefix}{entry.name}", entry.stat().st_size
