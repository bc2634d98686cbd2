"""Noised samples and their regression targets, in the convention of the network: both flow paths, and DiT's discrete chain."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.models.parameterization import Parameterization
from segue.models.spec import SiTSpec

from .objective import Objective

STATE_COLUMNS = 4  # of a table: alpha, s, p, q


@dataclass(frozen=True, eq=False)
class Times:
    """Where B samples of a batch stand on the path, on the CPU.

    ``network`` [B]: the network's time input; ``level`` [B]: the flow noise level; ``table`` [B, 4]: alpha, s, p, q of the
    state ``alpha x0 + s eps`` and the target ``p x0 + q eps`` of the network's own output; ``index`` [B] int64 of the chain.
    """

    network: Tensor
    level: Tensor
    table: Tensor
    index: Tensor | None = None


class Noising:
    """Draws times for one network and says what they mean."""

    def __init__(self, spec: SiTSpec, objective: Objective):
        """Raises ``ValueError`` for a path or times that are not the network's."""
        if objective.path not in (None, spec.path):
            raise ValueError(f"objective path is {objective.path!r}, and {spec.name} is a network of the path {spec.path!r}")
        self.spec, self.objective, self.parameterization = spec, objective, Parameterization(spec)
        if self.parameterization.discrete and objective.time == "log-normal":
            raise ValueError(f"{spec.name} is trained at uniform indices of a discrete chain: objective time must be 'uniform'")
        if spec.time not in ("sigma", "data_time", "discrete"):
            raise ValueError(f"{spec.name} has time input {spec.time!r}; trained are networks of sigma, data_time or discrete")

    def draw(self, count: int, generator: torch.Generator) -> Times:
        """Times of ``count`` samples."""
        if self.parameterization.discrete:
            return self.at_indices(torch.randint(Parameterization.TRAIN_STEPS, (count,), generator=generator))
        if self.objective.time == "uniform":
            return self.at_times(torch.rand(count, generator=generator))
        normal = self.objective.time_mean + self.objective.time_std * torch.randn(count, generator=generator)
        return self.at_times(self._log_normal(normal))

    def _log_normal(self, normal: Tensor) -> Tensor:
        """The time whose ratio of noise to data has the logarithm ``normal``.  Source: SD3 (2403.03206), section 3.1; REPA."""
        if self.spec.path == "cosine":
            return torch.atan(normal.double().exp()).mul(2 / math.pi).to(normal.dtype)
        return torch.sigmoid(normal)

    def at_times(self, time: Tensor) -> Times:
        """Points of a flow path: time [B] in [0, 1], where 1 is noise."""
        network = 1 - time if self.spec.time == "data_time" else time
        sign = -1.0 if self.spec.prediction == "data_velocity" else 1.0
        if self.spec.path == "linear":
            level, one = time, torch.ones_like(time)
            table = torch.stack([1 - time, time, -sign * one, sign * one], dim=1)
        else:
            angle = time.double() * (math.pi / 2)
            alpha, s = angle.cos(), angle.sin()
            level = (s / (alpha + s)).to(time.dtype)
            table = torch.stack([alpha, s, -sign * math.pi / 2 * s, sign * math.pi / 2 * alpha], dim=1).to(time.dtype)
        return Times(network, level, table)

    def at_indices(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Times:
        """Points of the discrete chain: index [B] int64; the target is the noise."""
        alpha, s, sigma = (torch.from_numpy(values)[index] for values in self.parameterization.chain)
        table = torch.stack([alpha, s, torch.zeros_like(s), torch.ones_like(s)], dim=1).to(dtype)
        return Times(index.to(dtype), sigma.to(dtype), table, index)


def noised(x0: Tensor, eps: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The states and the targets [B, C, H, W] of samples x0 and noise eps at the points of a table [B, 4 or more]."""
    alpha, s, p, q = (column[:, None, None, None] for column in table[:, :STATE_COLUMNS].unbind(1))
    return alpha * x0 + s * eps, p * x0 + q * eps
