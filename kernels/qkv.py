"""From a fused QKV projection to split heads, with optional per-head RMSNorm of q and k."""

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [R, T, 3 D] -> q, k, v [R, H, T, K], views."""
    rows, tokens, width = qkv.shape
    q, k, v = qkv.view(rows, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    return q, k, v


def split_heads_norm(
    qkv: Tensor, heads: int, q_weight: Tensor | None = None, k_weight: Tensor | None = None, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`split_heads`, then RMSNorm over each head of q and k when weights [K] are given.

    Source: query-key normalisation as in SD3 (arXiv 2403.03206, section 5.3.2).
    """
    q, k, v = split_heads(qkv, heads)
    if q_weight is not None:
        q = F.rms_norm(q, q.shape[-1:], q_weight, eps)
        k = F.rms_norm(k, k.shape[-1:], k_weight, eps)
    return q, k, v


def joint_heads_norm(
    image: Tensor,
    text: Tensor,
    heads: int,
    image_weights: tuple[Tensor, Tensor] | None = None,
    text_weights: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two streams to one joint sequence in the order [image, text].

    image [R, L, 3 D], text [R, M, 3 D]; weights are (q, k) RMSNorm weights [K] or None -> q, k, v [R, H, L + M, K].
    """
    streams = [
        split_heads_norm(image, heads, *(image_weights or ()), eps=eps),
        split_heads_norm(text, heads, *(text_weights or ()), eps=eps),
    ]
    q, k, v = (torch.cat(pair, dim=2) for pair in zip(*streams, strict=True))
    return q, k, v
