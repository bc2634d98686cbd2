"""Linear layers by oneDNN's fp32 product on the CPU, which adds the bias and takes the GELU while a tile is in registers.

``F.linear`` copies the bias into the result first and reads it back, and its GELU is a pass of its own over [R, L, E].  Weights
are not packed ahead: they may be another pipeline's, and change.

oneDNN's operation knows neither autocast nor derivatives: it refuses operands of two dtypes, and gives a wrong gradient without
an error.  There the functions of :mod:`.mlp` run: where the dtypes of state and weight differ, where autocast is on, and where
autograd records or forward-mode differentiation is under way.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import mlp
from .mlp import Projected

X86 = ("x86_64", "AMD64")


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these functions cannot serve networks of ``dtype`` on ``device``; None when they can."""
    if device.type != "cpu":
        return f"oneDNN's products run on the CPU, and this is {device.type}"
    if dtype != torch.float32:
        return f"they are made for float32, and this network computes in {str(dtype).removeprefix('torch.')}"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    if not torch.backends.mkldnn.enabled:
        return "oneDNN is switched off by torch.backends.mkldnn"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this PyTorch has no fused linear layer of oneDNN"
    return None


def measured_faster() -> bool:
    """Whether this processor is of the kind on which these functions were measured against PyTorch's own."""
    return platform.machine() in X86


def _served(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether oneDNN's operation does here what ``F.linear`` would."""
    if x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return False
    return forward_ad._current_level < 0  # asking each operand for its tangent takes three times as long


def _product(x: Tensor, weight: Tensor, bias: Tensor, epilogue: str, algorithm: str) -> Tensor:
    dense = bias.contiguous()  # the stride of a bias would be ignored
    return torch.ops.mkldnn._linear_pointwise(x, weight, dense, epilogue, [], algorithm)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """:func:`.mlp.linear` as one primitive."""
    if not _served(x, weight, bias):
        return mlp.linear(x, weight, bias)
    return _product(x, weight, bias, "none", "")


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """:func:`.mlp.linear_gelu` as one primitive."""
    if not _served(x, weight, bias):
        return mlp.linear_gelu(x, weight, bias)
    return _product(x, weight, bias, "gelu", "tanh")


def project_slices(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x2: Tensor | None = None,
    weight2: Tensor | None = None,
    bias2: Tensor | None = None,
) -> tuple[Projected, ...]:
    """:func:`.mlp.project_slices`, one primitive with its bias for each stream."""
    first = linear(x, weight, bias), None
    return (first,) if x2 is None else (first, (linear(x2, weight2, bias2), None))
