"""Scores from nearest neighbours: how many samples look real, and how much of what is real they reach.

Precision and recall: Kynkaanniemi et al. (arXiv 1904.06991); density and coverage: Naeem et al. (arXiv 2002.09797).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .features import check_pair

ROWS_AT_ONCE = 1024  # of a matrix of distances


@dataclass(frozen=True)
class NeighbourScores:
    """``precision``: the share of samples inside a ball of a real one, whose radius is the distance of its k-th neighbour among
    the real; ``recall``: the share of real ones inside a ball of a sample; ``density``: how many balls of real ones hold a
    sample, over k (it may pass 1); ``coverage``: the share of balls of real ones that hold a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_scores(features: Tensor, reference: Tensor, k: int = 3) -> NeighbourScores:
    """Of features [N, F] against [M, F]; N, M > k.  The shares depend on both counts: compare at equal ones."""
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"the number of neighbours must be a positive integer, got {k!r}")
    generated, real = check_pair(features, reference, least=k + 1)
    generated_radii, real_radii = _radii(generated, k), _radii(real, k)
    holding = torch.zeros(len(generated), dtype=torch.int64)  # balls of real ones that hold each sample
    covered, reached = torch.zeros(len(real), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for first in range(0, len(real), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        distances = _distances(real[part], generated)
        inside = distances <= real_radii[part, None]
        holding += inside.sum(dim=0)
        covered[part], reached[part] = inside.any(dim=1), (distances <= generated_radii).any(dim=1)
    return NeighbourScores(
        precision=float((holding > 0).double().mean()),
        recall=float(reached.double().mean()),
        density=float(holding.double().mean() / k),
        coverage=float(covered.double().mean()),
    )


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
