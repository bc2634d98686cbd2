"""fp8 as the definition of e4m3 states it, in fp64: one sign, four exponent and three mantissa bits, largest value 448."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def round_e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 number, ties to even; values beyond 448 saturate.  Normal numbers reach down to 2^-6."""
    exponent = torch.floor(torch.log2(x.abs().clamp_min(2.0**-20))).clamp_min(-6)
    step = 2.0 ** (exponent - 3)
    return (torch.round(x / step) * step).clamp(-448, 448)


def quantized(x: Tensor) -> Tensor:
    """What a row-wise quantised ``x`` [..., D] stands for; scales are fp32 numbers."""
    scale = (x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 448).float().double()
    return round_e4m3(x.double() / scale) * scale


class NaiveFp8Linear(nn.Module):
    """A linear layer whose two operands are quantised by rows, in fp64."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = quantized(linear.weight.detach().double()), linear.bias.detach().double()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(quantized(x), self.weight, self.bias)


def replace_linears(model: nn.Module, chosen) -> nn.Module:
    """Replace, in place, the linear layers whose name ``chosen`` accepts."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and chosen(name):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, NaiveFp8Linear(module))
    return model
