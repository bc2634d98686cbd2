"""MNIST, Fashion-MNIST and their kin, from the IDX files that they are published as."""

import gzip
import hashlib
import math
import re
import struct
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from segue.engine.numeric_input import counting_number

from .classes import Classes
from .finite import FiniteSource
from .image_source import check_flip, flipped, to_samples

IMAGES, LABELS = 0x00000803, 0x00000801  # unsigned bytes in three dimensions, and in one
SPLITS = ("train", "t10k")
PADDED = 32
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# of their labels: the files of MNIST and its kin have the same names and sizes
FASHION_LABELS = {"657fbd221bfc9f41", "3d0e6c6ea990b53b"}  # train, t10k
_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")


def is_idx(name: str) -> bool:
    """Whether a file's name is that of one of the four files."""
    return _NAME.fullmatch(name) is not None


class IdxSource(FiniteSource):
    """A :class:`~.source.Source` of small grey images [3, size, size] in [-1, 1], three equal channels.

    The files' 28 x 28 pixels stand in the middle of black ones (32 x 32 by default: a size that patches of 2, 4 and 8 divide),
    and are three equal channels, so that pictures, previews and feature extractors need no case of their own.
    """

    kind = "images of IDX files"

    def __init__(self, folder: Path, split: str = "train", size: int | None = None, flip: bool = False):
        """Raises ``ValueError`` or ``OSError`` for files that are not there, not whole, or do not belong together."""
        if split not in SPLITS:
            raise ValueError(f"split must be {' or '.join(SPLITS)}, got {split!r}")
        pixels = read_idx(_file(folder, split, "images"), IMAGES)
        labels = read_idx(_file(folder, split, "labels"), LABELS)
        if len(pixels) != len(labels):
            raise ValueError(
                f"{folder} has {len(pixels):,} images and {len(labels):,} labels of {split!r}; they must be as many"
            )
        height, width = pixels.shape[1:]
        size = max(PADDED, height, width) if size is None else counting_number(size, "size")
        if size < max(height, width):
            raise ValueError(f"size must be at least {max(height, width)}, that of the images in {folder}, got {size}")
        names = FASHION if _digest(labels) in FASHION_LABELS else ()
        name = "fashion-mnist" if names else folder.resolve().name
        left, top = (size - width) // 2, (size - height) // 2
        self.pixels = F.pad(pixels, (left, size - width - left, top, size - height - top))
        self.flip = check_flip(flip)
        padded = "" if height == width == size else f", padded with black to {size} x {size}"
        note = f"{height} x {width} grey pixels as three equal channels{padded}"
        super().__init__(name, (3, size, size), labels.long(), Classes(int(labels.max()) + 1, names), (note,))

    def sample(self, item: int, generator: torch.Generator) -> Tensor:
        image = to_samples(self.pixels[item]).expand(self.shape)
        return flipped(image, self.flip, generator)

    @cached_property
    def _content(self) -> str:
        return _digest(self.pixels, self.labels)

    def fingerprint(self) -> dict[str, Any]:
        """A digest of pixels and labels; and how the images are padded and mirrored."""
        return {
            "kind": self.kind,
            "count": len(self),
            "content": self._content,
            "shape": list(self.shape),
            "flip": self.flip,
        }


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:16]


def _file(folder: Path, split: str, what: str) -> Path:
    matches = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    found = [path for path, match in matches if match and match.groups()[:2] == (split, what)]
    if not found:
        name = f"{split}-{what}-idx{3 if what == 'images' else 1}-ubyte"
        raise FileNotFoundError(f"{folder} has no {name}, plain or .gz")
    return found[0]  # of a plain and a compressed one the plain one: its name comes first


def read_idx(path: Path, magic: int) -> Tensor:
    """The bytes of an IDX file, uint8 [n] or [n, H, W]; a name that ends in .gz is compressed.

    Raises ``ValueError`` for another kind (``magic``), and one that is cut off or too long.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    if len(content) < header or struct.unpack(">I", content[:4])[0] != magic:
        kind, begins = "images" if magic == IMAGES else "labels", content[:4].hex() or "nothing"
        raise ValueError(f"{path} is no IDX file of {kind}: it begins with {begins}, not {magic:08x}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + math.prod(shape)
    if not math.prod(shape) or len(content) != expected:
        raise ValueError(f"{path} says {list(shape)}, which are {expected:,} bytes, and has {len(content):,}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)
