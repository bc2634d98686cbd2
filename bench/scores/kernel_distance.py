"""Kernel distance: the unbiased squared maximum mean discrepancy with a cubic kernel.

``k(x, y) = (x . y / F + 1)^3``.  Source: Binkowski et al. (arXiv 1801.01401), where it is the kernel inception distance (KID).
"""

from statistics import fmean, stdev

import torch
from torch import Tensor

from .features import check_pair

DEGREE = 3


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Between features [N, F] and [M, F]; N, M >= 2.  Unbiased, so it may be negative where both sides are alike."""
    return _distance(*check_pair(features, reference))


def kernel_distance_by_subsets(
    features: Tensor, reference: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation over ``subsets`` random pairs of ``size`` samples, as KID is usually reported."""
    generated, real = check_pair(features, reference)
    if subsets < 2:
        raise ValueError(f"a deviation needs at least two subsets, got {subsets}")
    if not 2 <= size <= min(len(generated), len(real)):
        raise ValueError(f"a subset holds 2 to {min(len(generated), len(real))} samples, got {size}")
    generator, values = torch.Generator().manual_seed(seed), []
    for _ in range(subsets):
        chosen = [side[torch.randperm(len(side), generator=generator)[:size]] for side in (generated, real)]
        values.append(_distance(*chosen))
    return fmean(values), stdev(values)


def _distance(generated: Tensor, real: Tensor) -> float:
    return float(_mean_within(generated) + _mean_within(real) - 2 * _kernel(generated, real).mean())


def _mean_within(side: Tensor) -> Tensor:
    """The mean kernel of two different samples of one side."""
    same = (side.square().mean(dim=1) + 1) ** DEGREE  # of a sample with itself
    return (_kernel(side, side).sum() - same.sum()) / (len(side) * (len(side) - 1))


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** DEGREE
