"""A frozen DiT or SiT with a trainable adapter: low-rank weights, and where its strength is an input, an embedding of it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .low_rank import LowRankSpec, adapters, add_adapters, check_rank, merge_adapters
from .sit import SiT


@dataclass(frozen=True)
class AdapterSpec:
    """What an adapter consists of: its low-rank weights, and the range of ``scales`` that it takes (None: it has one)."""

    low_rank: LowRankSpec = field(default_factory=LowRankSpec)
    scales: tuple[float, float] | None = None

    def __post_init__(self):
        scales = self.scales
        if scales is None:
            return
        low, high = map(float, scales)
        if not (math.isfinite(low) and math.isfinite(high) and 0 <= low < high):
            raise ValueError(f"scales must be a range LOW,HIGH with 0 <= LOW < HIGH, got {scales!r}")
        object.__setattr__(self, "scales", (low, high))

    def shapes(self, network: SiT) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of an adapter's tensors; ``ValueError`` for layers or a rank that the network cannot have."""
        for name in self.low_rank.weights(network.spec):
            outputs, inputs = network.get_submodule(name).weight.shape
            check_rank(self.low_rank.rank, outputs, inputs)
            yield f"{name}.a", (self.low_rank.rank, inputs)
            yield f"{name}.b", (outputs, self.low_rank.rank)
        if self.scales is not None:
            for name, value in ScaleEmbedding(self.scales, network.spec.dim).state_dict().items():
                yield f"scale.{name}", tuple(value.shape)

    def check_scale(self, scale: float | None) -> float | None:
        """The scale to use, by default that nearest to 1; ``ValueError`` outside the range, or for one without a range."""
        if self.scales is None:
            if scale is not None:
                raise ValueError(f"adapter_scale={scale} does not apply: the adapter was trained at one scale")
            return None
        low, high = self.scales
        if scale is None:
            return min(max(1.0, low), high)
        if not low <= scale <= high:
            raise ValueError(f"adapter_scale must lie in [{low:g}, {high:g}], which the adapter was trained for, got {scale}")
        return float(scale)


class ScaleEmbedding(nn.Module):
    """Cosines of a scale in its range, then a perceptron to an embedding [N, D] that begins as zero."""

    FREQUENCIES, HIDDEN = 8, 64

    def __init__(self, scales: tuple[float, float], dim: int):
        super().__init__()
        self.scales = scales
        self.mlp = nn.Sequential(nn.Linear(self.FREQUENCIES, self.HIDDEN), nn.SiLU(), nn.Linear(self.HIDDEN, dim))
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, scale: Tensor) -> Tensor:
        """scale [N] -> [N, D]."""
        low, high = self.scales
        part = (scale.float() - low) / (high - low)
        angle = math.pi * part[:, None] * torch.arange(1, 1 + self.FREQUENCIES, device=scale.device)
        return self.mlp(angle.cos().to(self.mlp[0].weight.dtype))


class AdaptedSiT(nn.Module):
    """A network that is frozen, with an adapter whose parameters are drawn from the default generator."""

    def __init__(self, network: SiT, spec: AdapterSpec):
        super().__init__()
        self.adapter = spec
        self.network = add_adapters(network, spec.low_rank)
        self.scale = None if spec.scales is None else ScaleEmbedding(spec.scales, network.spec.dim)

    @property
    def spec(self) -> Any:
        return self.network.spec

    def forward(self, x: Tensor, time: Tensor, labels: Tensor, scale: Tensor | None = None) -> Tensor:
        """As :meth:`SiT.forward`; scale [B] where the adapter takes one."""
        embedding = None if self.scale is None else self.scale(scale)
        return self.network(x, time, labels, embedding=embedding)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """What the adapter's file holds: ``NAME.a`` [rank, D] and ``NAME.b`` [E, rank] of a layer, ``scale.*``."""
        found: dict[str, Tensor] = {}
        for name, _, adapter in adapters(self.network):
            found |= {f"{name}.a": adapter.a.detach(), f"{name}.b": adapter.b.detach()}
        if self.scale is not None:
            found |= {f"scale.{name}": value.detach() for name, value in self.scale.state_dict().items()}
        return found

    @torch.no_grad()
    def load_adapter(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`adapter_tensors` gave, whose names and shapes must be these."""
        for name, value in self.adapter_tensors().items():
            value.copy_(tensors[name])  # detached, so the parameter itself

    def merged(self, scale: float | None = None) -> SiT:
        """The network with the adapter in its weights, in place: this module is used up.

        ``scale`` is folded into the bias of the time embedding.  Raises as :meth:`AdapterSpec.check_scale`.
        """
        scale = self.adapter.check_scale(scale)
        merge_adapters(self.network)
        if self.scale is not None:
            with torch.no_grad():
                embedding = self.scale(torch.tensor([scale], device=self.scale.mlp[0].weight.device))[0].float()
                for embedder in self.network.embedders:
                    last = embedder.t_embedder.mlp[2]
                    last.bias = nn.Parameter(last.bias.float() + embedding, requires_grad=False)
        return self.network
