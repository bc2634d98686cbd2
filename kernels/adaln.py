"""Adaptive layer norm (adaLN): LayerNorm, modulation and the gated residual around it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def modulated_norm(h: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """``LayerNorm(h) * (1 + scale) + shift`` (no affine), in the dtype of ``h``.

    h [R, L, D]; shift, scale [R, 1, D].  Source: DiT (arXiv 2212.09748), adaLN-Zero block.
    """
    n = F.layer_norm(h, h.shape[-1:], eps=eps)
    return torch.addcmul(shift, n, 1 + scale).to(h.dtype)


def gated_residual(h: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """``h += gate * y`` in place; returns ``h``.  h, y [R, L, D]; gate [R, 1, D]."""
    return torch.addcmul(h, y, gate, out=h)


def residual_modulated_norm(
    h: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """``h += gate * y`` in place, then ``modulated_norm(h)``; returns ``(h, n)``.

    h, y [R, L, D]; gate, shift, scale [R, 1, D].
    """
    gated_residual(h, y, gate)
    return h, modulated_norm(h, shift, scale, eps)


def gated_residual_differentiable(h: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """``h + gate * y`` as a new tensor, for training."""
    return torch.addcmul(h, y, gate.to(h.dtype))


def residual_modulated_norm_differentiable(
    h: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """:func:`residual_modulated_norm` without writing into ``h``, for training."""
    h = gated_residual_differentiable(h, y, gate)
    return h, modulated_norm(h, shift, scale, eps)
