"""Functions of :mod:`.adaln` and :mod:`.qkv` for training: results are new tensors, and nothing is written in place.

So they have derivatives in both modes, and ``torch.func`` can map them.  In forward mode PyTorch's attention needs its math
backend (``torch.nn.attention.sdpa_kernel``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .adaln import modulated
from .qkv import split_heads_norm


def modulated_norm(h: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """As :func:`.adaln.modulated_norm`."""
    return modulated(F.layer_norm(h, h.shape[-1:], eps=eps), shift, scale)


def modulated_norm2(
    h: Tensor, shift: Tensor, scale: Tensor, shift2: Tensor, scale2: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """As :func:`.adaln.modulated_norm2`."""
    n = F.layer_norm(h, h.shape[-1:], eps=eps)
    return modulated(n, shift, scale), modulated(n, shift2, scale2)


def gated_residual(h: Tensor, y: Tensor, gate: Tensor, bias: Tensor | None = None) -> Tensor:
    """``h + gate * (y + bias)``; shapes as :func:`.adaln.gated_residual`."""
    return torch.addcmul(h, y if bias is None else y + bias, gate.to(h.dtype))


def residual_modulated_norm(
    h: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`.adaln.residual_modulated_norm`."""
    h = gated_residual(h, y, gate, bias)
    return h, modulated_norm(h, shift, scale, eps)


def residual_modulated_norm2(
    h: Tensor, y: Tensor, gate: Tensor, *modulations: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`.adaln.residual_modulated_norm2`; ``modulations`` are shift, scale, shift2, scale2."""
    h = gated_residual(h, y, gate, bias)
    return h, *modulated_norm2(h, *modulations, eps=eps)


def residual2_modulated_norm(
    h: Tensor, y: Tensor, y2: Tensor, gate: Tensor, gate2: Tensor, *modulation: Tensor, eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As :func:`.adaln.residual2_modulated_norm`; ``modulation`` is shift, scale."""
    return residual_modulated_norm(gated_residual(h, y, gate, bias), y2, gate2, *modulation, eps=eps)


def joint_heads_norm(
    image: Tensor,
    text: Tensor,
    heads: int,
    image_weights: tuple[Tensor, Tensor] | None = None,
    text_weights: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`.qkv.joint_heads_norm`; the streams are joined as [R, T, H, K], the order in which they lie."""
    streams = [
        split_heads_norm(stream, heads, *(weights or ()), eps=eps)
        for stream, weights in ((image, image_weights), (text, text_weights))
    ]
    q, k, v = (torch.cat([x.transpose(1, 2) for x in pair], dim=1).transpose(1, 2) for pair in zip(*streams, strict=True))
    return q, k, v
