"""The herbarium as a data set: an endless stream of new leaf images, so the true distribution is known."""

from typing import Any

import torch
from torch import Tensor

from ..streams import stream_generator
from .leaves import SIZE, draw_leaves
from .species import NUM_SPECIES, PARENTS, SPECIES


class Herbarium:
    """A :class:`~.source.Source` of leaves [3, size, size] in [-1, 1] of all species; every draw is new."""

    name = "herbarium"
    num_classes = NUM_SPECIES
    parents = PARENTS
    tiers: tuple[tuple[int, ...], ...] = ()
    class_names = SPECIES

    def __init__(self, size: int = SIZE):
        self.shape = (3, size, size)

    def batch(self, index: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Leaves [B, 3, H, W] and their species [B], drawn from the seed ``(seed, index)`` alone."""
        generator = stream_generator(seed, index)
        labels = torch.randint(0, NUM_SPECIES, (size,), generator=generator)
        return draw_leaves(labels, generator, self.shape[1]), labels

    def fingerprint(self) -> dict[str, Any]:
        """Its name, size and number of species: the leaves are drawn, not stored."""
        return {"name": self.name, "shape": list(self.shape), "classes": self.num_classes}
