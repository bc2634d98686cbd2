"""Samples as one ``.npz`` file in the form of ADM's evaluation suite, written a batch at a time and resumed where it stopped.

``arr_0`` uint8 [N, H, W, 3], ``arr_1`` int64 [N] the labels.  The pictures wait in raw files beside it, whose length says how
many there are; the archive is made of them at the end, without holding them in memory.
"""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from ..files import whole_file
from ..images import latents_to_images

COPY_BYTES = 1 << 24
LABEL_BYTES = 8


def to_pixels(pictures: Tensor) -> np.ndarray:
    """Pictures [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3], the same as in PNG files; ``ValueError`` for NaN or infinity."""
    if not torch.isfinite(pictures).all():
        raise ValueError("pictures must be finite, and some values are not")
    return np.stack([np.asarray(image) for image in latents_to_images(pictures)])


class NpzFile:
    """``count`` pictures of ``height`` x ``width``; ``written`` of them are safe on the disk, whatever interrupted the writer.

    A file of raw pictures beside ``path`` belongs to the ``made_by`` that it was begun with (model, rule, seeds, ...): another
    is refused.
    """

    def __init__(self, path: Path, count: int, height: int, width: int, made_by: dict):
        self.path, self.count, self.size = Path(path), count, (height, width)
        if self.path.suffix != ".npz":
            raise ValueError(f"the file of samples must end in .npz, got {path}")
        if count < 1:
            raise ValueError(f"a file holds at least one sample, got {count}")
        parts = [self.path.with_name(f"{self.path.name}.{part}") for part in ("pixels", "labels", "json")]
        self.pixels, self.labels, self.record = parts
        self._begin({"count": count, "height": height, "width": width, "made_by": made_by})
        self.written = count if self.finished else self._whole_samples()

    def _begin(self, record: dict) -> None:
        """Write what the file is made by, or see that it is what it was begun with."""
        text = json.dumps(record, sort_keys=True)
        if self.record.exists():
            before = self.record.read_text(encoding="utf-8")
            if json.loads(before) != json.loads(text):
                raise ValueError(f"{self.path} was begun as {before}, and cannot go on as {text}")
        elif self.path.exists():
            raise ValueError(f"{self.path} exists already, and nothing beside it says how it was made")
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.record) as part:
                part.write_text(text, encoding="utf-8")

    @property
    def finished(self) -> bool:
        """Whether the archive is there; it is whole if it is."""
        return self.path.exists()

    def _whole_samples(self) -> int:
        """How many pictures have their label; drops what an interruption left behind them."""
        each = {self.pixels: 3 * self.size[0] * self.size[1], self.labels: LABEL_BYTES}
        written = min(self.count, *(_length(path) // size for path, size in each.items()))
        for path, size in each.items():
            with path.open("ab") as file:
                file.truncate(written * size)
        return written

    def append(self, pictures: Tensor, labels: Tensor) -> None:
        """Add pictures [B, 3, H, W] in [-1, 1] and their labels [B]; on the disk when this returns."""
        pixels, asked = to_pixels(pictures), torch.as_tensor(labels).cpu().numpy().astype("<i8")
        if pixels.shape[1:3] != self.size or asked.shape != (len(pixels),):
            raise ValueError(f"expected pictures of {self.size} with a label each, got {pixels.shape[1:3]} and {asked.shape}")
        if self.written + len(pixels) > self.count:
            raise ValueError(f"{self.path} holds {self.count} samples; {self.written} are written, got {len(pixels)} more")
        for path, values in ((self.pixels, pixels), (self.labels, asked)):
            with path.open("ab") as file:
                file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())
        self.written += len(pixels)

    def finish(self) -> Path:
        """Make the archive, whole or not at all, and remove the raw files; does what is left of that after an interruption."""
        if self.written < self.count:
            raise ValueError(f"{self.path} needs {self.count} samples, and {self.written} are written")
        if not self.finished:
            self._archive()
        for raw in (self.pixels, self.labels):
            raw.unlink(missing_ok=True)
        return self.path

    def _archive(self) -> None:
        arrays = (("arr_0", self.pixels, "|u1", (self.count, *self.size, 3)), ("arr_1", self.labels, "<i8", (self.count,)))
        with whole_file(self.path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, raw, dtype, shape in arrays:
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as target, raw.open("rb") as source:
                    header = {"descr": dtype, "fortran_order": False, "shape": shape}
                    npy_format.write_array_header_1_0(target, header)
                    shutil.copyfileobj(source, target, COPY_BYTES)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
