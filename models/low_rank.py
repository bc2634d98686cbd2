"""Low-rank adapters on the weights of a DiT or SiT: added to be trained, merged into the weights to sample.

An adapted weight is ``W + alpha / rank * B A``.  Source: LoRA (arXiv 2106.09685).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .sit import SiT
from .spec import SiTSpec, positive_integer
from .unallocated import unallocated

# target -> where it is inside a block
BLOCK_TARGETS = {
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "adaLN": "adaLN_modulation.1",
}
# target -> where it is outside the blocks
END_TARGETS = {"final": ("final_layer.linear", "final_layer.adaLN_modulation.1")}
TARGETS = (*BLOCK_TARGETS, *END_TARGETS)
DEFAULT_TARGETS = ("qkv", "proj", "fc1", "fc2", "adaLN")


@dataclass(frozen=True)
class LowRankSpec:
    """Which weights have an adapter, and of which rank: the ``targets`` of the blocks ``layers`` (empty: of all).

    ``alpha / rank`` multiplies the product; ``alpha`` 0 stands for the rank.
    """

    rank: int = 12
    alpha: float = 0.0
    targets: tuple[str, ...] = DEFAULT_TARGETS
    layers: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "rank", positive_integer("rank", self.rank))
        object.__setattr__(self, "alpha", float(self.alpha or self.rank))
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {self.alpha}")
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f"targets must be some of {', '.join(TARGETS)}, got {', '.join(unknown) or 'none'}")

    def weights(self, spec: SiTSpec) -> tuple[str, ...]:
        """The names of the adapted linear layers of a network; ``ValueError`` for a layer that it does not have."""
        for layer in self.layers:
            if not 0 <= layer < spec.depth:
                raise ValueError(f"{spec.name} has the layers 0 to {spec.depth - 1}, got {layer}")
        names = [
            f"blocks.{layer}.{BLOCK_TARGETS[target]}"
            for layer in self.layers or range(spec.depth)
            for target in self.targets
            if target in BLOCK_TARGETS
        ]
        return (*names, *(name for target in self.targets for name in END_TARGETS.get(target, ())))


def check_rank(rank: int, outputs: int, inputs: int) -> None:
    """Raise ``ValueError`` for a rank that a weight of that size cannot have."""
    if rank > min(outputs, inputs):
        raise ValueError(f"rank must be at most {min(outputs, inputs)}, the smaller side of {outputs} x {inputs}, got {rank}")


class LowRank(nn.Module):
    """The parametrization of one weight [E, D]: ``W + scale B A`` with a [rank, D] and b [E, rank], in fp32 whatever runs it.

    ``a`` begins as random numbers and ``b`` as zeros, so that a new adapter changes nothing.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float):
        super().__init__()
        outputs, inputs = weight.shape
        check_rank(rank, outputs, inputs)
        self.a = nn.Parameter(torch.randn(rank, inputs, dtype=torch.float32, device=weight.device) / inputs**0.5)
        self.b = nn.Parameter(torch.zeros(outputs, rank, dtype=torch.float32, device=weight.device))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return merged_weight(weight, self.a, self.b, self.scale)


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``W + scale B A`` [E, D] in the dtype of the adapter, fp32, or in fp64 of a weight in that."""
    dtype = torch.promote_types(weight.dtype, a.dtype)
    return torch.addmm(weight.to(dtype), b.to(dtype), a.to(dtype), alpha=scale)


def add_adapters(network: SiT, spec: LowRankSpec) -> SiT:
    """Freeze a network and give it new adapters, drawn from the default generator; in place.  Raises ``ValueError``."""
    names = spec.weights(network.spec)
    network.requires_grad_(False)
    for name in names:
        layer = network.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, spec.rank, spec.alpha / spec.rank))
    return network


def adapters(network: nn.Module) -> Iterator[tuple[str, nn.Module, LowRank]]:
    """(name, layer, adapter) of every adapted linear layer."""
    for name, layer in network.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            for parametrization in layer.parametrizations.weight:
                if isinstance(parametrization, LowRank):
                    yield name, layer, parametrization


def merge_adapters(network: nn.Module) -> nn.Module:
    """Put the adapters of a network into its weights, in place: it computes what it did, with the layers it had before.

    Adapted layers are replaced, since the class of one is shared with its copies (an average of weights is one), which
    ``remove_parametrizations`` would take apart.
    """
    for name, layer, _ in list(adapters(network)):
        owner, _, last = name.rpartition(".")
        with unallocated():
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        plain.bias = layer.bias
        setattr(network.get_submodule(owner), last, plain.train(layer.training))
    return network
