"""Images read from their files when their turn comes, as samples in [-1, 1]."""

from typing import Any

import torch
from torch import Tensor

from segue.engine.numeric_input import counting_number

from .classes import listed
from .finite import FiniteSource
from .image_files import image_size, read_image
from .labelled_files import LabelledFiles
from .unreadable import UnreadableSample


class ImageSource(FiniteSource):
    """A :class:`~.source.Source` of images [3, H, W] in [-1, 1], read lazily.

    ``size`` cuts them to squares of that many pixels; without it all must have one size, which their headers are read for.
    ``flip`` mirrors every second one, by chance.  Raises ``ValueError`` for images of several sizes.
    """

    kind = "images"

    def __init__(self, name: str, files: LabelledFiles, size: int | None = None, flip: bool = False):
        self.files, self.flip = files, check_flip(flip)
        self.size = None if size is None else counting_number(size, "size")
        height, width = _common_size(files) if self.size is None else (self.size, self.size)
        super().__init__(name, (3, height, width), files.labels, files.classes, files.notes)

    def image(self, item: int) -> Tensor:
        """Image ``item`` [3, H, W] uint8; raises :class:`~.unreadable.UnreadableSample`."""
        image = read_image(self.files.path(item), self.size)
        if image.shape != self.shape:
            raise UnreadableSample(
                f"{self.files.path(item)} has {list(image.shape[1:])} pixels now, not {list(self.shape[1:])} as before"
            )
        return image

    def sample(self, item: int, generator: torch.Generator) -> Tensor:
        return flipped(to_samples(self.image(item)), self.flip, generator)

    def fingerprint(self) -> dict[str, Any]:
        """A digest of names, sizes, labels and superclasses; and how the images are cut and mirrored."""
        return {
            "kind": self.kind,
            "count": len(self),
            "files": self.files.digest,
            "shape": list(self.shape),
            "size": self.size,
            "flip": self.flip,
        }


def check_flip(flip: bool) -> bool:
    if not isinstance(flip, bool):
        raise TypeError(f"flip must be True or False, got {flip!r}")
    return flip


def to_samples(pixels: Tensor) -> Tensor:
    """Pixels uint8 -> fp32 in [-1, 1], as networks and VAEs take them."""
    return pixels.float() / 127.5 - 1


def flipped(image: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """``image`` [..., W], mirrored by a fair coin where ``flip``."""
    return image.flip(-1) if flip and torch.rand((), generator=generator) < 0.5 else image


def _common_size(files: LabelledFiles) -> tuple[int, int]:
    first = image_size(files.path(0))
    others = [name for item, name in enumerate(files.names) if image_size(files.path(item)) != first]
    if others:
        raise ValueError(
            f"{len(others):,} of {len(files):,} images in {files.root} are not of the {first[0]} x {first[1]} pixels of "
            f"{files.names[0]!r} ({listed(others)}); give a size to cut all of them to"
        )
    return first
