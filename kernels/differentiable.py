"""The residuals of :mod:`.adaln` for training: the state is a new tensor instead of being written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from . import adaln


def gated_residual(h: Tensor, y: Tensor, gate: Tensor, bias: Tensor | None = None) -> Tensor:
    """``h + gate * (y + bias)``; shapes as :func:`.adaln.gated_residual`."""
    return torch.addcmul(h, y if bias is None else y + bias, gate.to(h.dtype))


def residual_modulated_norm(
    h: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`.adaln.residual_modulated_norm`."""
    h = gated_residual(h, y, gate, bias)
    return h, adaln.modulated_norm(h, shift, scale, eps)


def residual_modulated_norm2(
    h: Tensor, y: Tensor, gate: Tensor, *modulations: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`.adaln.residual_modulated_norm2`; ``modulations`` are shift, scale, shift2, scale2."""
    h = gated_residual(h, y, gate, bias)
    return h, *adaln.modulated_norm2(h, *modulations, eps=eps)


def residual2_modulated_norm(
    h: Tensor, y: Tensor, y2: Tensor, gate: Tensor, gate2: Tensor, *modulation: Tensor, eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As :func:`.adaln.residual2_modulated_norm`; ``modulation`` is shift, scale."""
    return residual_modulated_norm(gated_residual(h, y, gate, bias), y2, gate2, *modulation, eps=eps)
