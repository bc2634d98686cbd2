"""Stored moments of a VAE's latents as samples: drawn anew each time they are seen, and scaled as the network takes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .classes import listed
from .dataset_json import FILE, Listing, read_listing
from .finite import FiniteSource
from .labelled_files import LabelledFiles, files_under
from .latent_layout import BIAS, FEATURES, RECORD, SCALE, SD_CHANNELS, SD_SCALE, features_folder
from .unreadable import UnreadableSample

SUFFIX = ".npy"


def is_moments(name: str) -> bool:
    """Whether a file's name is that of stored moments."""
    return name.lower().endswith(SUFFIX)


class LatentSource(FiniteSource):
    """A :class:`~.source.Source` of latents [C, H, W] from a folder in the layout of :mod:`.latent_layout`.

    A sample is ``(mean + std eps) * scale + bias`` by channel, with eps by the stream: as ``dataset.json`` says
    (``latents_scale``, ``latents_bias``), else 0.18215 and 0.
    """

    kind = "latents"

    def __init__(self, folder: Path, tier: int | str | None = None, files: Mapping[str, int] | None = None):
        """``files`` are those of ``folder``, if they were listed already.

        Raises ``ValueError`` or ``OSError`` for labels without files, files without labels, and files of another shape.
        """
        root = features_folder(folder)
        if not (root / FILE).is_file():
            unfinished = (folder / RECORD).is_file() and "; segue encode has not finished there, the same command goes on"
            raise FileNotFoundError(f"{root} has no {FILE} with the labels of its latents{unfinished or ''}")
        listing = read_listing(root / FILE)
        files = files_under(folder) if files is None else files
        prefix = "" if root == folder else f"{FEATURES}/"
        found = {
            name.removeprefix(prefix): size for name, size in files.items() if name.startswith(prefix) and is_moments(name)
        }
        labels = listing.labels_of(found, "latents")
        classes = listing.classes_with(tier)
        self.files = LabelledFiles(root, tuple(found), tuple(found.values()), labels, classes)
        shape = self._common_shape()
        self.scale, self.bias, notes = _affine(listing, shape[0])
        resolved = folder.resolve()
        name = resolved.parent.name if resolved.name == FEATURES else resolved.name
        super().__init__(name, shape, labels, classes, notes)

    def _common_shape(self) -> tuple[int, int, int]:
        """The shape of a latent.  Files of one shape and dtype are equally long, so headers are read of the others alone."""
        first = _header(self.files.path(0))
        longer = {
            name: size for name, size in zip(self.files.names, self.files.sizes, strict=True) if size != self.files.sizes[0]
        }
        wrong = [name for name in longer if _header(self.files.root / name) != first]
        if wrong:
            other = list(_header(self.files.root / wrong[0]))
            raise ValueError(
                f"{len(wrong):,} of {len(self.files):,} latents in {self.files.root} are not of the shape {list(first)} of "
                f"{self.files.names[0]!r} ({listed(wrong)}; the first has {other})"
            )
        doubled, height, width = first
        return doubled // 2, height, width

    def moments(self, item: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C, H, W] fp32 of an image; raises :class:`~.unreadable.UnreadableSample`."""
        path = self.files.path(item)
        try:
            values = torch.from_numpy(_without_batch(np.load(path, allow_pickle=False)).astype(np.float32))
        except (ValueError, OSError, EOFError) as error:
            raise UnreadableSample(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        channels, *extents = self.shape
        if values.shape != (2 * channels, *extents):
            raise UnreadableSample(f"{path} has the shape {list(values.shape)}, not {[2 * channels, *extents]} as the others")
        mean, std = values.split(channels)
        if not values.isfinite().all() or (std < 0).any():
            raise UnreadableSample(f"{path} holds no mean and standard deviation: a value is negative or not finite")
        return mean, std

    def sample(self, item: int, generator: torch.Generator) -> Tensor:
        mean, std = self.moments(item)
        return (mean + std * torch.randn(self.shape, generator=generator)) * self.scale + self.bias

    def fingerprint(self) -> dict[str, Any]:
        """A digest of names, sizes, labels and superclasses; and what the latents are scaled by."""
        return {
            "kind": self.kind,
            "count": len(self),
            "files": self.files.digest,
            "shape": list(self.shape),
            SCALE: self.scale.flatten().tolist(),
            BIAS: self.bias.flatten().tolist(),
        }


def _without_batch(values: np.ndarray) -> np.ndarray:
    """[2 C, H, W] of what some releases wrote as [1, 2 C, H, W]."""
    if values.dtype.kind != "f":
        raise ValueError(f"it holds {values.dtype}, no floating-point numbers")
    return values[0] if values.ndim == 4 and len(values) == 1 else values


def _header(path: Path) -> tuple[int, ...]:
    """The shape [2 C, H, W] of stored moments; ``ValueError`` for anything else."""
    try:
        shape = _without_batch(np.load(path, mmap_mode="r", allow_pickle=False)).shape
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if len(shape) != 3 or shape[0] % 2 or not all(shape):
        raise ValueError(f"{path} has the shape {list(shape)}; mean and standard deviation are [2 C, H, W]")
    return shape


def _affine(listing: Listing, channels: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Scale and bias [C, 1, 1], and what was taken where nothing is stated."""
    scale, bias = listing.further.get(SCALE), listing.further.get(BIAS)
    notes: tuple[str, ...] = ()
    if scale is None and bias is None:
        if channels != SD_CHANNELS:
            raise ValueError(
                f"{listing.path} has no {SCALE}, and latents of {channels} channels are not of Stable Diffusion's VAE"
            )
        scale, bias = [SD_SCALE] * channels, [0.0] * channels
        notes = (f"{FILE} states no {SCALE}: {SD_SCALE}, of Stable Diffusion's VAE, is taken",)
    return _by_channel(listing, SCALE, scale, channels), _by_channel(listing, BIAS, bias, channels), notes


def _by_channel(listing: Listing, name: str, values: Any, channels: int) -> Tensor:
    if not isinstance(values, list) or len(values) != channels or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{name} of {listing.path} must be {channels} numbers, one for each channel, got {values!r}")
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
