"""Scores from nearest neighbours: how many samples look real, and how much of what is real they reach.

Precision and recall: Kynkaanniemi et al. (arXiv 1904.06991); density and coverage: Naeem et al. (arXiv 2002.09797).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .features import check_pair
from .intervals import LEVEL, Interval, interval_by_sets, wilson

ROWS_AT_ONCE = 1024  # of a matrix of distances


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Balls around the samples of either side that reach to their k-th nearest neighbour on their own side.

    holding [N] int64: how many balls of real samples hold each generated one; covered [M] bool: whether a real one's ball
    holds a generated one; reached [M] bool: whether a real one lies in a ball of a generated one.
    """

    k: int
    holding: Tensor
    covered: Tensor
    reached: Tensor

    @property
    def precision(self) -> float:
        """The share of generated samples in a ball of a real one."""
        return float((self.holding > 0).double().mean())

    @property
    def recall(self) -> float:
        """The share of real samples in a ball of a generated one."""
        return float(self.reached.double().mean())

    @property
    def density(self) -> float:
        """How many balls of real samples hold a generated one, over k: 1 on average where both sides are alike, or more."""
        return float(self.holding.double().mean()) / self.k

    @property
    def coverage(self) -> float:
        """The share of balls of real samples that hold a generated one."""
        return float(self.covered.double().mean())

    def intervals(self, level: float = LEVEL) -> dict[str, Interval]:
        """All four by name, each for the samples that it is a mean over, with the balls of the other side as they are."""

        def density(part: Tensor) -> float:
            return float(part.double().mean()) / self.k

        shares = {"precision": self.holding > 0, "recall": self.reached, "coverage": self.covered}
        found = {name: wilson(int(hits.sum()), len(hits), level) for name, hits in shares.items()}
        return found | {"density": interval_by_sets(density, self.holding, level=level)}


def neighbours(features: Tensor, reference: Tensor, k: int = 3) -> Neighbours:
    """Of generated features [N, F] and real ones [M, F]; N, M > k.  All scores depend on both counts: compare at equal ones."""
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"the number of neighbours must be a positive integer, got {k!r}")
    generated, real = check_pair(features, reference, least=k + 1)
    generated_radii, real_radii = _radii(generated, k), _radii(real, k)
    holding = torch.zeros(len(generated), dtype=torch.int64)
    covered, reached = torch.zeros(len(real), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for first in range(0, len(real), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        distances = _distances(real[part], generated)
        inside = distances <= real_radii[part, None]
        holding += inside.sum(dim=0)
        covered[part], reached[part] = inside.any(dim=1), (distances <= generated_radii).any(dim=1)
    return Neighbours(k, holding, covered, reached)


def _radii(features: Tensor, k: int) -> Tensor:
    """The distance of every sample's k-th nearest other, [N]."""
    radii = []
    for first in range(0, len(features), ROWS_AT_ONCE):
        distances = _distances(features[first : first + ROWS_AT_ONCE], features)
        rows = torch.arange(len(distances))
        distances[rows, first + rows] = torch.inf  # no sample is its own neighbour
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean, from differences: by inner products equal samples would lie 1e-8 apart, outside a ball of radius 0."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
