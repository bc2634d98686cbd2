"""Networks whose large linear layers are in fp8: QKV, out-projection and MLP of every block.

Embedders, modulation and readout stay as they are: they are small, or run once per run, or decide the output directly.
"""

import copy
from dataclasses import dataclass
from itertools import chain

from torch import nn

from .block_linears import block_linears
from .fp8_linear import Fp8Linear, fp8_fits


@dataclass(frozen=True)
class Fp8Layers:
    """What became of the block linears: how many are in fp8, and how many are not by (inputs, outputs).

    ``weights`` counts the numbers in the fp8 layers' weights, ``bytes`` what they take, and ``bytes_before`` what they took.
    """

    quantized: int
    kept: dict[tuple[int, int], int]
    weights: int
    bytes: int
    bytes_before: int

    @classmethod
    def of(cls, network: nn.Module) -> "Fp8Layers":
        layers = [layer for *_, layer in block_linears(network)]
        done = [layer for layer in layers if isinstance(layer, Fp8Linear)]
        shapes = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
        return cls(
            len(done),
            {shape: shapes.count(shape) for shape in dict.fromkeys(shapes)},
            sum(layer.values.numel() for layer in done),
            sum(layer.values.nbytes + layer.scale.nbytes for layer in done),
            sum(layer.values.numel() * layer.bias.itemsize for layer in done),
        )


def quantize_linears(network: nn.Module) -> nn.Module:
    """Put the block linears of ``network`` in fp8, in place, one after another, so that no two copies of all exist.

    Layers whose sizes the fp8 product cannot take (:func:`.fp8_linear.fp8_fits`) stay.  Raises ``ValueError`` where no layer
    can be quantised.
    """
    for owner, name, layer in list(block_linears(network)):
        if isinstance(layer, nn.Linear) and fp8_fits(layer):
            setattr(owner, name, Fp8Linear(layer))
    if not Fp8Layers.of(network).quantized:
        raise ValueError(f"{network.spec.name} has no block linear that fp8 can take: their sizes must be multiples of 16")
    return network


def with_fp8_linears(network: nn.Module) -> nn.Module:
    """``network`` if its linears are in fp8 already, else a copy where they are; the copy shares all other tensors."""
    if any(isinstance(module, Fp8Linear) for module in network.modules()):
        return network
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    return quantize_linears(copy.deepcopy(network, shared))
