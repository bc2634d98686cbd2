"""Vector algebra over a few states of each sample by their sums alone: what corrections are written in.

A :class:`Vector` is a linear combination of the states of a :class:`Span`, known by its coefficients.  Inner products of
vectors follow from those of the states, which one pass over them finds; so a correction of any length costs that pass, one
that writes the result, and arithmetic on a few numbers per sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from segue.kernels.record import Kernels

TINY = 1e-30  # a zero vector has no direction: its ratios are zero, not NaN
ROUNDING = 1e-6  # of a square in fp32, relative to that of the lengths that it is the difference of


class Span:
    """K states [B, C, H, W] fp32; those in ``relative`` stand for their difference from the first, ``x_0 - x_k``."""

    def __init__(self, kernels: Kernels, states: Sequence[Tensor], relative: tuple[int, ...] = ()):
        self.kernels, self.states, self.relative = kernels, tuple(states), relative
        self.elements = self.states[0][0].numel()

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Means [B, K] and centred products [B, K, K]."""
        return self.kernels.moments(self.relative, *self.states)

    def unit(self, index: int) -> "Vector":
        """The vector that is one of the states."""
        first = self.states[0]
        coefficients = torch.zeros(len(first), len(self.states), dtype=first.dtype, device=first.device)
        coefficients[:, index] = 1.0
        return Vector(self, coefficients)

    def written(self, *vectors: "Vector") -> tuple[Tensor, ...]:
        """The vectors as states [B, C, H, W] fp32, in one pass."""
        coefficients = torch.stack([vector.coefficients for vector in vectors], dim=1)
        return self.kernels.linear_combination(self.relative, coefficients, *self.states).unbind(0)


@dataclass(frozen=True, eq=False)
class Vector:
    """``sum_k a_k x_k`` for each sample; ``coefficients`` [B, K].  Scalars are numbers or [B]."""

    span: Span
    coefficients: Tensor

    def __add__(self, other: "Vector") -> "Vector":
        return Vector(self.span, self.coefficients + other.coefficients)

    def __sub__(self, other: "Vector") -> "Vector":
        return Vector(self.span, self.coefficients - other.coefficients)

    def __mul__(self, scalar: Tensor | float) -> "Vector":
        factor = scalar[:, None] if isinstance(scalar, Tensor) else scalar
        return Vector(self.span, self.coefficients * factor)

    __rmul__ = __mul__

    def __truediv__(self, scalar: Tensor) -> "Vector":
        return Vector(self.span, self.coefficients / scalar[:, None])

    def where(self, chosen: Tensor, other: "Vector") -> "Vector":
        """This vector for the samples that ``chosen`` [B] bool names, ``other`` for the rest."""
        return Vector(self.span, torch.where(chosen[:, None], self.coefficients, other.coefficients))

    def dot(self, other: "Vector") -> Tensor:
        """The inner product over each sample, [B]."""
        means, _ = self.span.moments
        mine, theirs = (vector.coefficients * means for vector in (self, other))
        return self._centred(other) + self.span.elements * mine.sum(1) * theirs.sum(1)

    def square(self) -> Tensor:
        """``<a, a>``, [B], of a zero vector next to nothing, so that its root has a gradient."""
        return self.dot(self).clamp_min(TINY)

    def norm(self) -> Tensor:
        """``|a|``, [B]."""
        return self.square().sqrt()

    def known_square(self) -> Tensor:
        """``<a, a>``, [B], but where the states cancel to less than their rounding no less than that: to be divided by."""
        means, products = self.span.moments
        lengths = (products.diagonal(dim1=1, dim2=2) + self.span.elements * means.square()).clamp_min(TINY).sqrt()
        return torch.maximum(self.square(), ROUNDING * (self.coefficients.abs() * lengths).sum(1).square())

    def along(self, other: "Vector") -> Tensor:
        """How much of ``other`` is in this vector, ``<a, b> / <b, b>``, [B]; little of one that is next to nothing."""
        return self.dot(other) / other.known_square()

    def deviation(self) -> Tensor:
        """The standard deviation over the elements of each sample, [B], with n - 1 as in PyTorch."""
        return (self._centred(self).clamp_min(TINY) / (self.span.elements - 1)).sqrt()

    def _centred(self, other: "Vector") -> Tensor:
        _, products = self.span.moments
        return (self.coefficients[:, :, None] * products * other.coefficients[:, None]).sum((1, 2))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator`` of numbers that are not negative below; zero below gives a finite ratio, of zero zero."""
    return numerator / denominator.clamp_min(TINY)
