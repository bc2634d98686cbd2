"""Leaves in the plane: every class a tree of elongated Gaussians, with two knobs, the number of classes and the depth.

Many classes make the condition sharp, deep trees make a class complex: the two-dimensional stand-in for fine-grained pictures
that papers on weak guidance explain themselves with (after arXiv 2406.02507 and 2603.20584; this geometry is our own).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .mixture import GaussianMixture

STEM_START, STEM_LENGTH = 0.22, 0.80  # from the origin outwards
SIBLING_SPREAD = 0.72  # of a superclass's sector
LONG, THIN = 0.29, 0.055  # standard deviations along and across, in lengths: 1 / sqrt(12) is that of a rod
# twigs of a branch: where along it, turned by how many degrees, how long beside it; uneven, as on a leaf that grew
TWIGS = ((0.55, 52.0, 0.52), (0.74, -46.0, 0.46), (1.0, 7.0, 0.58))


@dataclass(frozen=True)
class Segment:
    """A branch from ``start`` on, ``length`` long at ``angle`` (radians); its mass is its length."""

    start: tuple[float, float]
    angle: float
    length: float

    def at(self, share: float) -> tuple[float, float]:
        """The point after ``share`` of the length."""
        x, y = self.start
        return x + share * self.length * math.cos(self.angle), y + share * self.length * math.sin(self.angle)

    def twigs(self) -> list["Segment"]:
        return [Segment(self.at(at), self.angle + math.radians(turn), self.length * ratio) for at, turn, ratio in TWIGS]

    def mean(self) -> Tensor:
        return torch.tensor(self.at(0.5), dtype=torch.float64)

    def covariance(self) -> Tensor:
        axis = torch.tensor([math.cos(self.angle), math.sin(self.angle)], dtype=torch.float64)
        along = torch.outer(axis, axis)
        return self.length**2 * (LONG**2 * along + THIN**2 * (torch.eye(2, dtype=torch.float64) - along))


@dataclass(frozen=True, eq=False)
class Blob:
    """Mass, mean [2] and covariance [2, 2] of what may be one branch or many."""

    mass: float
    mean: Tensor
    covariance: Tensor


def blobs(segment: Segment, depth: int, resolved: int) -> list[Blob]:
    """The tree of ``depth`` levels on ``segment``, told apart in its first ``resolved`` levels.

    A branch of the last level that is told apart stands for all that grows on it, with its mass, mean and covariance.
    """
    own = [Blob(segment.length, segment.mean(), segment.covariance())]
    if depth == 1:
        return own
    grown = own + [blob for twig in segment.twigs() for blob in blobs(twig, depth - 1, max(resolved - 1, 1))]
    return grown if resolved > 1 else [merged(grown)]


def merged(parts: list[Blob]) -> Blob:
    """One Gaussian with the mass, mean and covariance of ``parts`` together."""
    mass = math.fsum(part.mass for part in parts)
    shares = torch.tensor([part.mass / mass for part in parts], dtype=torch.float64)
    means = torch.stack([part.mean for part in parts])
    offsets = means - shares @ means
    spreads = torch.stack([part.covariance for part in parts]) + offsets[:, :, None] * offsets[:, None, :]
    return Blob(mass, shares @ means, torch.einsum("k,kij->ij", shares, spreads))


def leaf_mixture(num_classes: int = 4, depth: int = 3, siblings: int = 1, resolved: int | None = None) -> GaussianMixture:
    """``num_classes`` trees of ``depth`` levels around the origin, ``siblings`` of them in each superclass (1: there are none).

    ``resolved`` levels, by default all, are told apart: a shallower mixture of the same means and covariances by class.
    """
    resolved = depth if resolved is None else resolved
    for name, value in (("num_classes", num_classes), ("depth", depth), ("siblings", siblings), ("resolved", resolved)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if num_classes % siblings:
        raise ValueError(f"{num_classes} classes cannot be shared out in superclasses of {siblings}")
    if resolved > depth:
        raise ValueError(f"{resolved} levels cannot be told apart in trees of {depth}")
    leaves = [blobs(_stem(label, num_classes, siblings), depth, resolved) for label in range(num_classes)]
    parents = tuple(label // siblings for label in range(num_classes)) if siblings > 1 else ()
    return _mixture(leaves, parents)


def _stem(label: int, num_classes: int, siblings: int) -> Segment:
    sector = 2 * math.pi * siblings / num_classes
    place = (label % siblings - (siblings - 1) / 2) / siblings * SIBLING_SPREAD
    angle = sector * (label // siblings + 0.5 + place)
    return Segment((STEM_START * math.cos(angle), STEM_START * math.sin(angle)), angle, STEM_LENGTH)


def _mixture(leaves: list[list[Blob]], parents: tuple[int, ...]) -> GaussianMixture:
    every = [blob for leaf in leaves for blob in leaf]
    values, vectors = torch.linalg.eigh(torch.stack([blob.covariance for blob in every]))  # ascending
    weights = torch.block_diag(*(torch.tensor([[blob.mass for blob in leaf]], dtype=torch.float64) for leaf in leaves))
    return GaussianMixture(
        means=torch.stack([blob.mean for blob in every]),
        axes=vectors[:, :, 1].contiguous(),
        variances=values.flip(1),
        weights=weights / weights.sum(dim=1, keepdim=True),
        parents=parents,
    )
