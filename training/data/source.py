"""What a network is trained on: a protocol of a few names, and the endless stream of batches that a run reads of it."""

import signal
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from segue.engine.numeric_input import counting_number, whole_number

from ..streams import MAX_SEED

MAX_BATCHES = 2**31
"""Batches have the indices of a stream below this; the training noise has those from here on."""


class Source(Protocol):
    """Labelled samples, pictures or latents, in the range that the network is trained on.

    ``shape`` is (C, H, W) of a sample.  Labels are ``0 .. num_classes - 1``; ``parents[c]`` is the superclass of class ``c``,
    empty without superclasses; ``class_names`` are for people, and may be empty.  A source with tiers above the superclasses
    has them as ``tiers``, see :func:`tiers_of`.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    parents: tuple[int, ...]
    class_names: tuple[str, ...]

    def batch(self, index: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of the stream ``seed``: samples [B, C, H, W] fp32 and labels [B] int64, ``size`` of them.

        It depends on these three numbers only.  A source with an end shuffles itself anew for every pass.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What a run that is resumed must find again, as JSON values: a digest of what the source holds."""


def tiers_of(source: Source) -> tuple[tuple[int, ...], ...]:
    """The ancestors of every class of ``source`` above its superclass, the nearest tier first; empty where it tells of none."""
    return tuple(getattr(source, "tiers", ()))


class Batches(IterableDataset):
    """An endless stream of ``(samples [B, C, H, W] fp32, labels [B] int64)`` of a source.

    A step reads ``parts`` batches, of which ``own`` are this stream's: those of step ``start``, of the next, and so on.
    Worker ``k`` of ``n`` makes every ``n``-th from the ``k``-th on, so the stream does not depend on the number of workers.
    """

    def __init__(
        self, source: Source, batch_size: int, seed: int = 0, start: int = 0, parts: int = 1, own: range | None = None
    ):
        self.source = source
        self.batch_size = counting_number(batch_size, "batch_size")
        self.seed = whole_number(seed, "seed must be a whole number")
        self.start = whole_number(start, "start must be a whole number")
        self.parts = counting_number(parts, "parts")
        self.own = range(self.parts) if own is None else own
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must lie in [0, 2^31), got {seed}")
        if not 0 <= self.start * self.parts < MAX_BATCHES:
            raise ValueError(f"start must lie in [0, 2^31 / {self.parts}), got {start}")

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        while True:
            step, part = divmod(number, len(self.own))
            index = (self.start + step) * self.parts + self.own[part]
            yield self.source.batch(index, self.batch_size, self.seed)
            number += workers


def batch_loader(
    source: Source,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    workers: int = 0,
    parts: int = 1,
    own: range | None = None,
) -> DataLoader:
    """A DataLoader over :class:`Batches`; batches come in the same order for any number of workers."""
    workers = whole_number(workers, "workers must be a whole number")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    return DataLoader(
        Batches(source, batch_size, seed, start, parts, own),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=leave_interrupts_to_the_parent,
        generator=torch.Generator(),  # else every iterator draws a number from the caller's
    )


def leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; a worker that dies of it would turn a clean stop into an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
