"""Images into stored latents, a file each: what was done stays done, and a folder is of one VAE and one list of images."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segue.engine.adapters.vae import Decoder
from segue.engine.files import check_writable, whole_file
from segue.models.checkpoint_files import read_json
from segue.models.fingerprint import fingerprint

from .classes import Classes
from .dataset_json import FILE, listing_text
from .image_source import ImageSource, to_samples
from .labelled_files import files_under
from .latent_layout import BIAS, FEATURES, IMAGES, RECORD, SCALE, image_name, moments_name
from .source import leave_interrupts_to_the_parent
from .unreadable import UnreadableSample
from .vae_moments import check_encoder, check_pixels, image_moments, network_affine

# keys of the record, and how a sentence says that they differ
SAME = {
    "vae": "another VAE",
    "dtype": "another precision",
    "shape": "images of another size",
    "files": "other images or classes",
}
GIB = 2**30


@dataclass(frozen=True, eq=False)
class Encoding:
    """The encoding of the images of ``source`` into the folder ``out`` by a VAE, in the layout of :mod:`.latent_layout`.

    ``keep_images`` also writes the images as they were cut, which REPA's own training reads; ``skip_unreadable`` leaves files
    out that cannot be read, instead of stopping at the first.
    """

    source: ImageSource
    decoder: Decoder
    out: Path
    batch_size: int = 8
    workers: int = 0
    keep_images: bool = False
    skip_unreadable: bool = False

    def open(self) -> list[int]:
        """Make the folder ready, or refuse it before any work; returns the images that are still to be done.

        Raises ``ValueError`` for a VAE that does not fit and a folder of something else, ``OSError`` for one that cannot be
        written to or is too small.
        """
        vae = self.decoder.vae
        check_encoder(vae, "the VAE")
        check_pixels(self.source.shape, self.decoder.factor)
        record = self._record()
        self._check_folder(record)
        pending = self._pending()
        self._check_space(len(pending))
        check_writable(self.out / RECORD, folder=False)
        with self._told(0):
            self.out.mkdir(parents=True, exist_ok=True)
            _write(self.out / RECORD, json.dumps(record, indent=1).encode() + b"\n")
        return pending

    def run(self, pending: list[int], advance: Callable[[int], None] = lambda done: None) -> list[str]:
        """Encode the images ``pending``, then write the labels; returns the names of the images that were left out.

        ``advance`` is told of every batch how many are done.  Raises :class:`~.unreadable.UnreadableSample`, ``OSError`` for a
        disk that is full, ``FloatingPointError``; what was done until then stays and is not done again.
        """
        done, left_out, missing = len(self.source) - len(pending), [], set(pending)
        for batch in self._batches(missing):
            left_out += self._unreadable(batch, missing)
            whole = [(item, image) for item, image in batch if isinstance(image, Tensor)]
            for (item, image), moments in zip(whole, self._moments([image for _, image in whole]), strict=True):
                if item in missing:
                    with self._told(done):
                        self._write(item, image, moments)
                    done += 1
            advance(len(missing.intersection(item for item, _ in batch)))
        with self._told(done):
            self._finish(set(left_out))
        return [self.source.files.names[item] for item in left_out]

    def _unreadable(self, batch: list[tuple[int, Any]], missing: set[int]) -> list[int]:
        """Those of a batch that are left out; raises what was found where none may be."""
        found = {item: error for item, error in batch if item in missing and isinstance(error, UnreadableSample)}
        for error in found.values():
            if not self.skip_unreadable:
                raise UnreadableSample(f"{error}; take it away, or leave such files out (--skip-unreadable)")
        return list(found)

    def _moments(self, images: list[Tensor]) -> list[Tensor]:
        return list(image_moments(self.decoder.vae, torch.stack([to_samples(image) for image in images]))) if images else []

    def _batches(self, missing: set[int]) -> DataLoader:
        """The batches of the whole list with something missing.

        Convolutions round by their batch: so a run that goes on writes the bytes that it would have written at once.
        """
        first = sorted({item // self.batch_size * self.batch_size for item in missing})
        items = [item for start in first for item in range(start, min(start + self.batch_size, len(self.source)))]
        return DataLoader(
            _Images(self.source, items),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=leave_interrupts_to_the_parent,
        )

    # --- the folder ------------------------------------------------------------------------------------------------------

    def _record(self) -> dict[str, Any]:
        vae, files = self.decoder.vae, self.source.files
        dtype = str(vae.dtype).removeprefix("torch.")
        record = {"vae": fingerprint({"vae": vae}), "dtype": dtype, "shape": list(self.source.shape)}
        return record | {"files": files.digest, "count": len(files)}

    def _check_folder(self, record: dict[str, Any]) -> None:
        path = self.out / RECORD
        if not path.is_file():
            if self.out.is_dir() and any(self.out.iterdir()):
                raise ValueError(f"{self.out} holds other files and no {RECORD} of segue encode; choose a new folder")
            return
        found = read_json(path)
        # in this order: of another precision the VAE's weights differ too
        for name in ("dtype", "vae", "shape", "files"):
            if found.get(name) != record[name]:
                raise ValueError(
                    f"{self.out} was made with {SAME[name]} ({found.get(name)!r}, not {record[name]!r}); choose another folder"
                )

    @property
    def moments_shape(self) -> tuple[int, int, int]:
        """[2 C, h, w] of a file."""
        _, height, width = self.source.shape
        return 2 * self.decoder.vae.config.latent_channels, height // self.decoder.factor, width // self.decoder.factor

    def _pending(self) -> list[int]:
        """The images of which not every file is there and whole."""
        there = files_under(self.out / FEATURES) if (self.out / FEATURES).is_dir() else {}
        images = files_under(self.out / IMAGES) if (self.out / IMAGES).is_dir() else {}
        size = len(_npy(np.zeros(self.moments_shape, np.float32)))
        return [
            item
            for item in range(len(self.source))
            if there.get(moments_name(item)) != size or (self.keep_images and image_name(item) not in images)
        ]

    def _check_space(self, count: int) -> None:
        needed = count * len(_npy(np.zeros(self.moments_shape, np.float32)))
        place = next(folder for folder in (self.out.absolute(), *self.out.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise OSError(f"{count:,} latents need {needed / GIB:.2f} GiB, and {place} has {free / GIB:.2f} GiB free")

    def _write(self, item: int, image: Tensor, moments: Tensor) -> None:
        if self.keep_images:
            buffer = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
            _write(self.out / IMAGES / image_name(item), buffer.getvalue())
        _write(self.out / FEATURES / moments_name(item), _npy(moments.numpy()))

    def _finish(self, left_out: set[int]) -> None:
        """Write the labels, and take away what killed runs left half-written."""
        for part in self.out.rglob(".*.part"):
            part.unlink()
        items = [item for item in range(len(self.source)) if item not in left_out]
        classes = Classes(
            self.source.num_classes, self.source.class_names, self.source.parents, self.source.parent_names, self.source.tiers
        )
        scale, bias = network_affine(self.decoder.vae)
        labels = self.source.labels.tolist()
        for folder, name, further in (
            (FEATURES, moments_name, {SCALE: scale, BIAS: bias}),
            *([(IMAGES, image_name, {})] if self.keep_images else []),
        ):
            content = listing_text({name(item): labels[item] for item in items}, classes, further)
            _write(self.out / folder / FILE, json.dumps(content).encode())

    @contextmanager
    def _told(self, done: int) -> Iterator[None]:
        """A disk that is full, or gone, in one sentence."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"cannot write to {self.out}: {error.strerror or error}; {done:,} of {len(self.source):,} images are done, "
                "and the same command goes on"
            ) from error


class _Images(Dataset):
    """Images by number, each with its own, or with why it cannot be read."""

    def __init__(self, source: ImageSource, items: list[int]):
        self.source, self.items = source, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> tuple[int, Tensor | UnreadableSample]:
        item = self.items[place]
        try:
            return item, self.source.image(item)
        except UnreadableSample as error:
            return item, error


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()  # to a file on a full disk NumPy raises without the reason
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_bytes(content)
