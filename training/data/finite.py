"""Sources with an end: every pass is a new permutation of all samples, and a batch depends on its place alone."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..streams import MAX_SEED, stream_generator
from .classes import Classes

# streams beside that of a run's batches and noise: no pass and no sample meets a generator of these
_PASSES, _SAMPLES = MAX_SEED, 2 * MAX_SEED


class FiniteSource(ABC):
    """A :class:`~.source.Source` of ``len(source)`` samples.

    The stream is the endless concatenation of passes, each a permutation of all samples by ``(seed, pass)``; batch ``i`` holds
    the places ``[i size, (i + 1) size)`` of it, so that every sample is seen once a pass whatever the batch size.  What is
    random about a sample depends on ``(seed, place)``: two batches of 8 are one of 16.  ``kind`` says what the samples are,
    ``notes`` what was decided about them or left out, a sentence each.
    """

    kind: str

    def __init__(
        self, name: str, shape: tuple[int, int, int], labels: Tensor, classes: Classes, notes: tuple[str, ...] = ()
    ) -> None:
        if not len(labels):
            raise ValueError(f"{name} holds no samples")
        self.name, self.shape, self.labels, self.notes = name, shape, labels, notes
        self.num_classes, self.class_names = classes.count, classes.names
        self.parents, self.parent_names, self.tiers = classes.parents, classes.parent_names, classes.tiers
        self._permutations: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_permutations": {}}

    @abstractmethod
    def sample(self, item: int, generator: torch.Generator) -> Tensor:
        """Sample ``item`` [C, H, W] fp32; raises :class:`~.unreadable.UnreadableSample`."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """As of :class:`~.source.Source`."""

    def batch(self, index: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Samples [B, C, H, W] fp32 and labels [B] int64 of the places ``[index size, (index + 1) size)``."""
        places = range(index * size, (index + 1) * size)
        items = [self._item(place, seed) for place in places]
        generators = (stream_generator(_SAMPLES + seed, place) for place in places)
        x0 = torch.stack([self.sample(item, generator) for item, generator in zip(items, generators, strict=True)])
        return x0, self.labels[items]

    def _item(self, place: int, seed: int) -> int:
        number, offset = divmod(place, len(self))
        return int(self._permutation(number, seed)[offset])

    def _permutation(self, number: int, seed: int) -> Tensor:
        found = self._permutations.get((number, seed))
        if found is None:
            found = torch.randperm(len(self), generator=stream_generator(_PASSES + seed, number))
            self._permutations = {(number, seed): found}
        return found
