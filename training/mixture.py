"""Labelled Gaussian mixtures in the plane, whose density, score and velocity are known exactly at every noise level.

With ``x = (1 - s) x0 + s eps``, a component of mean ``m`` and covariance ``S`` becomes one of mean ``(1 - s) m`` and covariance
``C = (1 - s)^2 S + s^2``, so everything is a sum over components.  Each is kept by its axes, in which ``S`` and ``C`` are
diagonal: no matrix is inverted, and both ends, ``s = 0`` and ``s = 1``, are levels like any other.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Level = float | Tensor
Labels = int | Tensor


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Classes that are mixtures of the same K elongated Gaussians, each class with weights of its own; fp64.

    means [K, 2]; axes [K, 2], the unit vectors along which the components are long; variances [K, 2], along the axis and
    across; weights [num_classes, K], each row sums to one.  ``parents[c]`` is the superclass of class ``c``, if there are any.
    Labels are numbered as a class-label network numbers them: classes, then superclasses, then the null label, which stands
    for everything; a superclass, and everything, is an equal share of its classes.
    """

    means: Tensor
    axes: Tensor
    variances: Tensor
    weights: Tensor
    parents: tuple[int, ...] = ()

    def __post_init__(self):
        count = len(self.means)
        for name, shape in (("means", (count, 2)), ("axes", (count, 2)), ("variances", (count, 2))):
            found = getattr(self, name)
            if found.shape != shape or found.dtype != torch.float64:
                raise ValueError(f"{name} must be fp64 of shape {shape}, got {found.dtype} of shape {tuple(found.shape)}")
        if self.weights.dim() != 2 or self.weights.shape[1] != count or self.weights.dtype != torch.float64:
            raise ValueError(f"weights must be fp64 of shape (classes, {count}), got shape {tuple(self.weights.shape)}")
        if not (self.variances > 0).all():
            raise ValueError(f"variances must be positive, got {float(self.variances.min()):g}")
        sums = self.weights.sum(dim=1)
        if not (self.weights >= 0).all() or (sums - 1).abs().max() > 1e-9:
            raise ValueError(f"the weights of a class are not negative and sum to one, got sums {sums.tolist()}")
        lengths = self.axes.norm(dim=1)
        if (lengths - 1).abs().max() > 1e-9:
            raise ValueError(f"axes are unit vectors, got lengths {lengths.tolist()}")
        if self.parents and len(self.parents) != len(self.weights):
            raise ValueError(f"parents must name one superclass for each of {len(self.weights)} classes, got {self.parents}")

    @property
    def num_classes(self) -> int:
        return len(self.weights)

    @property
    def num_labels(self) -> int:
        """Classes, superclasses and the null label."""
        return self.num_classes + len(set(self.parents)) + 1

    @property
    def null_label(self) -> int:
        return self.num_labels - 1

    def label_weights(self) -> Tensor:
        """The weights of the components under every label, [labels, K]."""
        parents = torch.tensor(self.parents, dtype=torch.int64)
        groups = [self.weights[parents == parent].mean(dim=0) for parent in range(len(set(self.parents)))]
        return torch.cat([self.weights, *(group[None] for group in groups), self.weights.mean(dim=0)[None]])

    def log_density(self, x: Tensor, sigma: Level, labels: Labels) -> Tensor:
        """``log p_sigma(x | label)``: x [B, 2], sigma a number or [B] in [0, 1], labels an integer or [B] -> [B] fp64."""
        return torch.logsumexp(self._joint(*self._framed(x, sigma), labels), dim=1)

    def score(self, x: Tensor, sigma: Level, labels: Labels) -> Tensor:
        """The gradient of :meth:`log_density` in x, [B, 2] fp64."""
        offset, variance = self._framed(x, sigma)
        share = self._joint(offset, variance, labels).softmax(dim=1)
        return torch.einsum("bk,bkd->bd", share, self._from_frame(-offset / variance))

    def velocity(self, x: Tensor, sigma: Level, labels: Labels) -> Tensor:
        """``E[eps - x0 | x, label]``, [B, 2] fp64: what a network that is fitted exactly gives at every level, the ends too.

        Within a component, with ``d = x - (1 - s) m``: ``E[x0] = m + (1 - s) S C^-1 d`` and ``E[eps] = s C^-1 d``.
        """
        offset, variance = self._framed(x, sigma)
        share = self._joint(offset, variance, labels).softmax(dim=1)
        level = _level(sigma, x)[:, None, None]
        gain = (level - (1 - level) * self.variances) / variance
        return torch.einsum("bk,bkd->bd", share, self._from_frame(gain * offset) - self.means)

    def class_probabilities(self, x: Tensor) -> Tensor:
        """``p(class | x)`` of clean points x [B, 2] for classes of equal share, [B, num_classes] fp64."""
        within = torch.stack([self.log_density(x, 0.0, label) for label in range(self.num_classes)], dim=1)
        return within.softmax(dim=1)

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """One clean point for each of labels [B] -> [B, 2] fp64."""
        chosen = torch.multinomial(self.label_weights()[labels], 1, generator=generator)[:, 0]
        unit = torch.randn(len(labels), 2, generator=generator, dtype=torch.float64)
        along, across = (unit * self.variances[chosen].sqrt()).unbind(dim=1)
        axis = self.axes[chosen]
        return self.means[chosen] + along[:, None] * axis + across[:, None] * _turned(axis)

    def covariances(self) -> Tensor:
        """Of the components, [K, 2, 2]."""
        frame = torch.stack([self.axes, _turned(self.axes)], dim=2)  # columns: along, across
        return frame @ torch.diag_embed(self.variances) @ frame.mT

    def moments(self, label: int) -> tuple[Tensor, Tensor]:
        """Mean [2] and covariance [2, 2] of the clean points of a label."""
        weights = self.label_weights()[label]
        mean = weights @ self.means
        spread = self.means - mean
        return mean, torch.einsum("k,kij->ij", weights, self.covariances() + spread[:, :, None] * spread[:, None, :])

    def underfitted(self, blur: float = 0.0, confusion: float = 0.0) -> "GaussianMixture":
        """What a network with too little capacity may have learnt of this: every point moved by ``blur`` standard deviations
        of unit noise, and a share ``confusion`` of every class drawn from all classes.
        """
        if not (math.isfinite(blur) and blur >= 0):
            raise ValueError(f"blur is a standard deviation and at least 0, got {blur}")
        if not 0 <= confusion <= 1:
            raise ValueError(f"confusion is a share between 0 and 1, got {confusion}")
        mixed = (1 - confusion) * self.weights + confusion * self.weights.mean(dim=0)
        return replace(self, variances=self.variances + blur**2, weights=mixed)

    def _framed(self, x: Tensor, sigma: Level) -> tuple[Tensor, Tensor]:
        """Distance from every component's mean in its own frame, and its variances there: [B, K, 2] each."""
        if x.dim() != 2 or x.shape[1] != 2:
            raise ValueError(f"points of the plane have shape [B, 2], got {list(x.shape)}")
        keep = (1 - _level(sigma, x))[:, None, None]
        offset = x.double()[:, None] - keep * self.means
        framed = torch.stack([(offset * self.axes).sum(dim=2), (offset * _turned(self.axes)).sum(dim=2)], dim=2)
        return framed, keep**2 * self.variances + (1 - keep) ** 2

    def _joint(self, offset: Tensor, variance: Tensor, labels: Labels) -> Tensor:
        """``log w_k + log N_k(x)`` for every component, [B, K]."""
        chosen = torch.as_tensor(labels)
        if not 0 <= int(chosen.min()) <= int(chosen.max()) < self.num_labels:
            raise ValueError(f"labels must lie in [0, {self.num_labels - 1}], got {int(chosen.min())} to {int(chosen.max())}")
        weights = self.label_weights().log()[chosen].expand(len(offset), -1)
        return weights - math.log(2 * math.pi) - 0.5 * (variance.log() + offset**2 / variance).sum(dim=2)

    def _from_frame(self, values: Tensor) -> Tensor:
        """Vectors [B, K, 2] in the frames of the components as vectors of the plane."""
        return values[..., :1] * self.axes + values[..., 1:] * _turned(self.axes)


def _turned(axis: Tensor) -> Tensor:
    """``axis`` [..., 2] turned by a right angle."""
    return torch.stack([-axis[..., 1], axis[..., 0]], dim=-1)


def _level(sigma: Level, x: Tensor) -> Tensor:
    """Noise levels [B] fp64 for points x [B, 2]."""
    level = torch.as_tensor(sigma, dtype=torch.float64).expand(len(x))
    if not bool(((level >= 0) & (level <= 1)).all()):
        raise ValueError(f"noise levels lie in [0, 1], got {sigma}")
    return level
