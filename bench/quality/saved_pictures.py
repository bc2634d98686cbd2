"""Pictures that exist: an ``.npz`` of ADM's evaluation suite, read a batch at a time, or a folder of PNG files."""

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from segue.engine.images import read_png

from .trial import to_unit

AT_ONCE = 256
DIGITS = 12  # of the digest in a name
READ_BYTES = 1 << 24


@dataclass(frozen=True)
class SavedPictures:
    """``count`` pictures of ``size`` (3, H, W); iterating gives batches [B, 3, H, W] in [-1, 1], as often as wanted.

    ``labels`` are those that the file or the records of the pictures hold, or None.  ``name`` carries a digest of the content.
    """

    name: str
    count: int
    size: tuple[int, int, int]
    source: Path | tuple[Path, ...]
    labels: tuple[int, ...] | None = None

    @classmethod
    def open(cls, path: Path) -> "SavedPictures":
        """Those of a file or a folder; raises ``ValueError`` or ``OSError`` for anything that holds none."""
        if path.is_dir():
            return _open_folder(path)
        if not path.exists():
            raise FileNotFoundError(f"there are no pictures {path}: it is no file and no folder")
        if path.suffix != ".npz":
            raise ValueError(f"pictures are read from an .npz file or a folder of PNG files, got {path}")
        return _open_npz(path)

    def first(self, count: int) -> "SavedPictures":
        """The first ``count`` of them."""
        return replace(self, count=count, labels=self.labels[:count] if self.labels else None)

    def __iter__(self) -> Iterator[Tensor]:
        return self._from_files(self.source) if isinstance(self.source, tuple) else self._from_archive(self.source)

    def _from_files(self, paths: tuple[Path, ...]) -> Iterator[Tensor]:
        for first in range(0, self.count, AT_ONCE):
            yield to_unit(np.stack([_pixels(path) for path in paths[first : min(first + AT_ONCE, self.count)]]))

    def _from_archive(self, path: Path) -> Iterator[Tensor]:
        channels, height, width = self.size
        each = channels * height * width
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            _header(file)
            for first in range(0, self.count, AT_ONCE):
                count = min(AT_ONCE, self.count - first)
                values = np.frombuffer(file.read(count * each), np.uint8)
                yield to_unit(values.reshape(count, height, width, channels))


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of an array whose file has just been opened."""
    version = npy_format.read_magic(file)
    return npy_format.read_array_header_1_0(file) if version == (1, 0) else npy_format.read_array_header_2_0(file)


def _open_npz(path: Path) -> SavedPictures:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "arr_0.npy" not in names:
                raise ValueError(f"{path} holds no pictures arr_0; it holds: {', '.join(names) or 'nothing'}")
            with archive.open("arr_0.npy") as file:
                shape, columns_first, dtype = _header(file)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0] or columns_first:
            raise ValueError(f"arr_0 of {path} must be uint8 pictures [N, H, W, 3], got {dtype} of shape {list(shape)}")
        with np.load(path) as arrays:
            labels = tuple(int(label) for label in arrays["arr_1"]) if "arr_1.npy" in names else None
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is no .npz archive, or a damaged one: {error}") from None
    if labels is not None and len(labels) != shape[0]:
        raise ValueError(f"{path} holds {shape[0]} pictures and {len(labels)} labels")
    return SavedPictures(f"{path.name} {_digest((path,))}", shape[0], (3, shape[1], shape[2]), path, labels)


def _open_folder(folder: Path) -> SavedPictures:
    """All PNG files but grids; labels if each carries a record of its class."""
    found = [(path, _recorded(path)) for path in sorted(folder.glob("*.png"))]
    single = [(path, labels) for path, labels in found if labels is None or len(labels) == 1]
    if not single:
        raise ValueError(f"{folder} holds no PNG files of single pictures")
    paths, labels = tuple(path for path, _ in single), [labels for _, labels in single]
    sizes = {path: _pixels(path).shape for path in paths}
    first = sizes[paths[0]]
    for path, size in sizes.items():
        if size != first:
            raise ValueError(f"pictures must be of one size, got {first[1]}x{first[0]} and {size[1]}x{size[0]} in {path}")
    known = None if None in labels else tuple(one[0] for one in labels if one)
    return SavedPictures(f"{folder.name} {_digest(paths)}", len(paths), (3, first[0], first[1]), paths, known)


def _recorded(path: Path) -> list[int] | None:
    """The labels of the pictures in a file by its record: one, or those of a grid; None without a record of them."""
    try:
        _, record = read_png(path)
    except ValueError:
        return None
    labels, index = record.get("labels"), record.get("index")
    if not labels or "prompts" in record:
        return None
    return labels if index is None else [labels[index]]


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} is not a picture: {error}") from None


def _digest(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    return digest.hexdigest()[:DIGITS]
