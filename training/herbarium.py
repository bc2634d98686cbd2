"""The herbarium as a data set: an endless stream of new leaf images, so the true distribution is known."""

import signal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from segue.engine.numeric_input import counting_number, whole_number

from .leaves import draw_leaves
from .species import NUM_SPECIES
from .streams import MAX_SEED, stream_generator

MAX_BATCHES = 2**31
"""Batches have the indices of a stream below this; the training noise has those from here on."""


class Herbarium(IterableDataset):
    """An endless stream of ``(image [B, 3, 32, 32] fp32, label [B] int64)`` batches; every draw is new.

    Batch ``i`` is drawn from the seed ``(seed, i)`` alone.  Worker ``k`` of ``n`` draws the batches ``start + k + n j``, so the
    stream does not depend on the number of workers, and ``start`` resumes it.
    """

    def __init__(self, batch_size: int, seed: int = 0, start: int = 0):
        self.batch_size = counting_number(batch_size, "batch_size")
        self.seed = whole_number(seed, "seed must be a whole number")
        self.start = whole_number(start, "start must be a whole number")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must lie in [0, 2^31), got {seed}")
        if not 0 <= self.start < MAX_BATCHES:
            raise ValueError(f"start must lie in [0, 2^31), got {start}")

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of the stream: images [B, 3, 32, 32] in [-1, 1] and species [B]."""
        generator = stream_generator(self.seed, index)
        labels = torch.randint(0, NUM_SPECIES, (self.batch_size,), generator=generator)
        return draw_leaves(labels, generator), labels

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        step, offset = (worker.num_workers, worker.id) if worker else (1, 0)
        index = self.start + offset
        while True:
            yield self.batch(index)
            index += step


def herbarium_loader(batch_size: int, seed: int = 0, start: int = 0, workers: int = 0) -> DataLoader:
    """A DataLoader over :class:`Herbarium`; batches come in the same order for any number of workers."""
    workers = whole_number(workers, "workers must be a whole number")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    return DataLoader(
        Herbarium(batch_size, seed, start),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator(),  # else every iterator draws a number from the caller's
    )


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; a worker that dies of it would turn a clean stop into an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
