"""REPA's term (arXiv 2410.06940): tokens of an early block, projected, align with features of another encoder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from segue.engine.numeric_input import counting_number, real_number

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Representation:
    """The features to align with, and how strongly.

    ``features``: from samples x0 [B, C, H, W] on the CPU to the encoders' features [B, L, Z_1 + Z_2 + ...], one vector for each
    token of the network, encoder beside encoder; ``dims`` are the Z.  The projectors read after ``layer`` blocks (published: 8)
    and are ``width`` wide.
    """

    features: Features
    dims: tuple[int, ...]
    layer: int = 8
    width: int = 2048
    weight: float = 0.5

    def __post_init__(self):
        if not callable(self.features):
            raise TypeError(f"features must be a function of samples, got {self.features!r}")
        dims = tuple(counting_number(dim, "each of the dims of a representation") for dim in self.dims)
        if not dims:
            raise ValueError("a representation needs the width of at least one encoder's features, got no dims")
        object.__setattr__(self, "dims", dims)
        for name in ("layer", "width"):
            object.__setattr__(self, name, counting_number(getattr(self, name), f"{name} of a representation"))
        object.__setattr__(self, "weight", real_number(self.weight, "weight of a representation must be a number"))
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight of a representation must be finite and at least 0, got {self.weight}")

    def of(self, x0: Tensor, tokens: int) -> Tensor:
        """The features [B, L, Z] of a batch; ``ValueError`` if they are of another shape."""
        features, wanted = self.features(x0), (len(x0), tokens, sum(self.dims))
        if not isinstance(features, Tensor) or tuple(features.shape) != wanted:
            found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"the features of a batch must be a tensor {list(wanted)}, got {found}")
        return features.detach().to(x0.dtype)


def representation_loss(projections: Sequence[Tensor], features: Tensor) -> Tensor:
    """Minus the cosine of projections [B, L, Z_i] and features [B, L, sum Z], a mean over tokens, samples and encoders."""
    parts = features.split([projection.shape[-1] for projection in projections], dim=-1)
    pairs = zip(projections, parts, strict=True)
    cosines = [F.cosine_similarity(ours.to(theirs.dtype), theirs, dim=-1).mean() for ours, theirs in pairs]
    return -torch.stack(cosines).mean()
