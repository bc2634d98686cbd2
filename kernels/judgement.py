"""How far a result is from the truth, and whether that is as far as rounding explains: error and bias.

The tests of the kernels, the tuner and the bench judge by these.  The bounds have one line of argument each; none changes in
the commit that changes a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A kernel against fp64: at most this many times the error that PyTorch makes in the same precision.
FACTOR = 2.0

# Added to that, in roundings of the output dtype (eps of the largest magnitude): where eager happens to be exact, a kernel may
# still round its output once and sum in another order.
FLOOR = 2.0

# Of the errors' root mean square.  Errors of one sign add up over the calls of a run where others average out: rounding to
# nearest has no bias, rounding toward zero one of .87 (uniform errors: mean 1/2, root mean square 1/sqrt(3)).
BIAS = 0.25

# Standard errors of the mean that are allowed beyond: the mean of 16 independent vectors strays as far once in 6000 (Student's
# t); fewer do not tell their own spread, and are taken to spread as far as their mean lies from zero.
CHANCE, FEW = 5.0, 16


@dataclass(frozen=True)
class Bias:
    """The mean error of a tensor and its bound, relative to the root mean square of the errors."""

    ratio: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.ratio <= self.bound  # False for NaN

    def __str__(self) -> str:
        return f"bias {self.ratio:.2f} of the error's root mean square, bound {self.bound:.2f}"


def error_bound(eager: Tensor, truth: Tensor, summands: float = 0.0) -> Tensor:
    """The largest deviation that a kernel may show from ``truth`` (fp64) when ``eager``, in its dtype, shows its own.

    ``summands``: the magnitude of what a mean is of.  A mean of large numbers may be small, and rounds as they do.
    """
    largest = truth.double().abs().max().clamp(min=summands)
    return FACTOR * (eager.double() - truth.double()).abs().max() + FLOOR * torch.finfo(eager.dtype).eps * largest


def bias(value: Tensor, truth: Tensor, shared: int = 1) -> Bias:
    """The worse of two biases of ``value`` against ``truth`` (fp64), both [...] of one shape: upward, and away from zero.

    An error in a statistic is shared by all that it serves, the last ``shared`` dimensions: the standard error of the mean is
    taken over the others.  Of one such vector every bias passes, as it may be chance.
    """
    error = value.double() - truth.double()
    size = error.square().mean().sqrt()
    worst = Bias(0.0, BIAS)
    if not size > 0:  # exact, or not finite, which the error's own bound catches
        return worst
    for signed in (error, error * truth.double().sign()):
        sums = (signed / size).flatten(max(0, signed.dim() - shared)).sum(-1).flatten()
        spread = sums if len(sums) < FEW else sums - sums.mean()
        chance = CHANCE * spread.square().sum().sqrt() / error.numel()
        found = Bias(float((sums.sum() / error.numel()).abs()), float(BIAS + chance))
        worst = max(worst, found, key=lambda one: one.ratio / one.bound)
    return worst
