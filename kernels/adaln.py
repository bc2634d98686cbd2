"""Adaptive layer norm (adaLN): LayerNorm, modulation and the gated residual around it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def modulated_norm(h: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """``LayerNorm(h) * (1 + scale) + shift`` (no affine), computed in fp32 and returned in the dtype of ``h``.

    h [R, L, D]; shift, scale [R, 1, D].  Source: DiT (arXiv 2212.09748), adaLN-Zero block.
    """
    n = F.layer_norm(h, h.shape[-1:], eps=eps)
    return torch.addcmul(shift, n, 1 + scale).to(h.dtype)


def gated_residual(h: Tensor, y: Tensor, gate: Tensor, inplace: bool = False) -> Tensor:
    """``h + gate * y``; with ``inplace`` the sum is written into ``h``.

    h, y [R, L, D]; gate [R, 1, D].
    """
    return torch.addcmul(h, y, gate, out=h) if inplace else torch.addcmul(h, y, gate.to(h.dtype))
