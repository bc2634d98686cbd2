"""Every leaf drawn at two sizes, from which a network learns what the larger picture has beyond the smaller."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..streams import stream_generator
from .herbarium import Herbarium
from .leaves import SIZE, draw_individuals, render_leaves
from .species import NUM_SPECIES


def packed(small: Tensor, large: Tensor) -> Tensor:
    """Pictures [B, C, H, W] and [B, C, f H, f W] of the same things as one tensor [B, C (1 + f^2), H, W]."""
    return torch.cat([small, F.pixel_unshuffle(large, large.shape[-1] // small.shape[-1])], dim=1)


def unpacked(pairs: Tensor, channels: int, factor: int) -> tuple[Tensor, Tensor]:
    """The pictures of ``channels`` that :func:`packed` put together; ``ValueError`` for samples that are no such pairs."""
    wanted = channels * (1 + factor**2)
    if pairs.shape[1] != wanted:
        raise ValueError(f"pairs of pictures {factor} apart have {wanted} channels, got samples of {pairs.shape[1]}")
    return pairs[:, :channels], F.pixel_shuffle(pairs[:, channels:], factor)


class HerbariumPairs(Herbarium):
    """A :class:`~.source.Source` of leaves [3 (1 + factor^2), size, size], each drawn at both sizes and :func:`packed`."""

    name = "herbarium-pairs"

    def __init__(self, size: int = SIZE, factor: int = 2):
        super().__init__(size)
        self.size, self.factor = size, factor
        self.shape = (3 * (1 + factor**2), size, size)

    def batch(self, index: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Pairs [B, 3 (1 + factor^2), H, W] and the species [B] of both pictures, from the seed ``(seed, index)`` alone."""
        generator = stream_generator(seed, index)
        labels = torch.randint(0, NUM_SPECIES, (size,), generator=generator)
        individuals = draw_individuals(size, generator)
        small, large = (render_leaves(labels, individuals, self.size * times) for times in (1, self.factor))
        return packed(small, large), labels
