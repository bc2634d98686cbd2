"""The large linear layers of the blocks, QKV, out-projection and MLP, and that a weight is all that layers are to kernels."""

from collections.abc import Iterator

from torch import nn

from .fp8_linear import Fp8Linear
from .layers import Mlp, PatchEmbed
from .mmdit import StreamAttention
from .sit import Attention, FinalLayer

OWNERS = (Attention, StreamAttention, Mlp)
NAMES = ("qkv", "proj", "fc1", "fc2")
ENDS = {PatchEmbed: "proj", FinalLayer: "linear"}  # of a network, whose weights kernels read too


def block_linears(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | Fp8Linear]]:
    """(owner, name there, layer) of every QKV, out-projection and MLP layer."""
    for owner in network.modules():
        if isinstance(owner, OWNERS):
            for name, layer in owner.named_children():
                if isinstance(layer, nn.Linear | Fp8Linear):
                    yield owner, name, layer


def check_block_linears(network: nn.Module) -> None:
    """Raise ``ValueError`` for a layer that is more than its weight and bias, where the kernels see no more than that.

    Such are an adapter around it (LoRA), and hooks.
    """
    for path, owner in network.named_modules():
        names = NAMES if isinstance(owner, OWNERS) else (ENDS[type(owner)],) if type(owner) in ENDS else ()
        for name in names:
            layer = getattr(owner, name, None)
            if layer is None:
                continue
            if not isinstance(layer, nn.Linear | nn.Conv2d | Fp8Linear):
                kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
                raise ValueError(f"{path}.{name} is a {kind}, of which the kernels would use the weight alone: merge it first")
            if layer._forward_hooks or layer._forward_pre_hooks:
                raise ValueError(f"{path}.{name} has a forward hook, which the kernels would not call: remove it first")
