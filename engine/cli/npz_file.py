"""Samples as one ``.npz`` file in the form of ADM's evaluation suite, written a batch at a time and resumed where it stopped.

``arr_0`` uint8 [N, H, W, 3], ``arr_1`` int64 [N] the labels.  The pictures wait in raw files beside it, one pair for every
shard, whose length says how many there are; the archive is made of them at the end, without holding them in memory.
"""

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from ..files import locked
from ..records.begun import begin_or_go_on

COPY_BYTES = 1 << 24
LABEL_BYTES = 8


@dataclass(frozen=True)
class Shard:
    """Part ``rank`` of ``world`` of ``count`` samples, in whole batches of ``batch``: what is drawn together never changes."""

    count: int
    batch: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"a file holds at least one sample, got {self.count}")
        if self.batch < 1:
            raise ValueError(f"a batch holds at least one sample, got {self.batch}")
        if self.world < 1 or not 0 <= self.rank < self.world:
            raise ValueError(f"a rank lies in [0, world), got rank {self.rank} of world {self.world}")

    def samples(self, rank: int | None = None) -> range:
        """The samples of a part, by default of this one."""
        rank, batches = self.rank if rank is None else rank, -(-self.count // self.batch)
        first, stop = (batches * end // self.world * self.batch for end in (rank, rank + 1))
        return range(min(first, self.count), min(stop, self.count))

    def name(self, rank: int) -> str:
        """What a part is called in names of files; nothing where there is one."""
        return "" if self.world == 1 else f".{rank}-of-{self.world}"


class NpzFile:
    """Samples of ``height`` x ``width``; ``written`` of this shard are safe on the disk, whatever interrupted the writer.

    Files of raw pictures beside ``path`` belong to the ``made_by`` that they were begun with (model, rule, seeds, ...): another
    is refused, and so is a second writer of the same shard.
    """

    def __init__(self, path: Path, shard: Shard, height: int, width: int, made_by: dict):
        self.path, self.shard, self.size = Path(path), shard, (height, width)
        if self.path.suffix != ".npz":
            raise ValueError(f"the file of samples must end in .npz, got {path}")
        self.record = self._beside(".json")
        self._lock: Any = None
        form = {"count": shard.count, "height": height, "width": width, "batch": shard.batch, "world": shard.world}
        self._begin(form | {"made_by": made_by})
        self.written = len(shard.samples()) if self.finished else self._whole_batches()

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _raw(self, rank: int) -> tuple[Path, Path]:
        """The files of pixels and labels of a shard."""
        pixels, labels = (self._beside(f"{self.shard.name(rank)}.{part}") for part in ("pixels", "labels"))
        return pixels, labels

    @property
    def _sizes(self) -> tuple[int, int]:
        """Bytes of a sample in either file."""
        return 3 * self.size[0] * self.size[1], LABEL_BYTES

    def _begin(self, record: dict) -> None:
        """Write what the file is made by, or see that it is what it was begun with."""
        if self.path.exists() and not self.record.exists():
            raise ValueError(f"{self.path} exists already, and nothing beside it says how it was made")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begin_or_go_on(self.record, record, self.path)

    @property
    def finished(self) -> bool:
        """Whether the archive is there; it is whole if it is."""
        return self.path.exists()

    def _whole_batches(self) -> int:
        """How many pictures of this shard have their label, in whole batches; drops what an interruption left behind them."""
        raw, wanted = self._raw(self.shard.rank), len(self.shard.samples())
        self._lock = raw[1].open("ab")
        if not locked(self._lock):
            raise ValueError(f"another process is writing to {raw[1]}")
        written = min(wanted, *(_length(path) // size for path, size in zip(raw, self._sizes, strict=True)))
        written -= written % self.shard.batch if written < wanted else 0
        for path, size in zip(raw, self._sizes, strict=True):
            with path.open("ab") as file:
                file.truncate(written * size)
        return written

    def append(self, pixels: np.ndarray, labels: Tensor) -> None:
        """Add uint8 pictures [B, H, W, 3] and their labels [B]; on the disk when this returns."""
        asked, wanted = torch.as_tensor(labels).cpu().numpy().astype("<i8"), len(self.shard.samples())
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (*self.size, 3) or asked.shape != (len(pixels),):
            got = f"{pixels.dtype} of shape {list(pixels.shape)} and {list(asked.shape)}"
            raise ValueError(f"expected uint8 pictures of {self.size} with a label each, got {got}")
        if self.written + len(pixels) > wanted:
            raise ValueError(f"{self.path} takes {wanted} samples here; {self.written} are written, got {len(pixels)} more")
        for path, values in zip(self._raw(self.shard.rank), (pixels, asked), strict=True):
            with path.open("ab") as file:
                file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())
        self.written += len(pixels)

    def give_up(self) -> None:
        """Leave nothing of a file that holds no sample yet, so that the next command is free; others' shards stay."""
        if self.written == 0 and self.shard.world == 1 and not self.finished:
            if self._lock is not None:
                self._lock.close()
            remove_samples(self.path)

    def finish(self) -> Path | None:
        """Make the archive, whole or not at all, and remove the raw files; None while other shards are not written.

        Does what is left of that after an interruption.
        """
        if self.written < (wanted := len(self.shard.samples())):
            raise ValueError(f"{self.path} needs {wanted} samples, and {self.written} are written")
        with self._alone():
            if not self.finished:
                if self.missing():
                    return None
                self._archive()
            for rank in range(self.shard.world):
                for raw in self._raw(rank):
                    raw.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
        return self.path

    def missing(self) -> list[int]:
        """The shards that are not whole."""
        return [rank for rank in range(self.shard.world) if not self._whole(rank)]

    def _whole(self, rank: int) -> bool:
        wanted = len(self.shard.samples(rank))
        return all(_length(path) == wanted * size for path, size in zip(self._raw(rank), self._sizes, strict=True))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process makes the archive: two shards may end at once."""
        with self.record.open("ab") as file:
            locked(file, wait=True)
            yield

    def _archive(self) -> None:
        count = self.shard.count
        arrays = (("arr_0", "|u1", (count, *self.size, 3)), ("arr_1", "<i8", (count,)))
        part = self._beside(".part")  # nobody else writes it, and what a killed process leaves of it is written over
        with part.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for place, (name, dtype, shape) in enumerate(arrays):
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as target:
                    header = {"descr": dtype, "fortran_order": False, "shape": shape}
                    npy_format.write_array_header_1_0(target, header)
                    for rank in range(self.shard.world):
                        if self.shard.samples(rank):
                            with self._raw(rank)[place].open("rb") as source:
                                shutil.copyfileobj(source, target, COPY_BYTES)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # the raw files go next
        part.replace(self.path)


def remove_samples(path: Path) -> None:
    """Remove an archive, its record and its raw files, if they are there."""
    for ending in (".pixels", ".labels"):
        for raw in path.parent.glob(f"{path.name}*{ending}"):
            raw.unlink()
    for ending in ("", ".part", ".json"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
