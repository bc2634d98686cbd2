"""Scaled dot-product attention over split heads, and the perturbed variants used by weak branches."""

import torch
import torch.nn.functional as F
from torch import Tensor

PERTURBATIONS = ("attention_identity", "attention_skip", "attention_blur")


def merge_heads(o: Tensor) -> Tensor:
    """[R, H, T, K] -> [R, T, H * K]."""
    return o.transpose(1, 2).reshape(o.shape[0], o.shape[2], -1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale ``K ** -0.5``.  q, k, v [R, H, T, K] -> [R, T, H * K]."""
    return merge_heads(F.scaled_dot_product_attention(q, k, v))


def perturbed_attention(q: Tensor, k: Tensor, v: Tensor, kind: str) -> Tensor:
    """Attention as a weak branch computes it.  q, k, v [R, H, T, K] -> [R, T, H * K].

    ``attention_identity``: the map is the identity, so the output is V (PAG, arXiv 2403.17377).
    ``attention_blur``: every query is the mean query, the limit of infinite blur (SEG, arXiv 2408.00760).
    ``attention_skip``: the output is zero (STG-A, arXiv 2411.18664); the caller must skip the projection bias too.
    """
    if kind == "attention_identity":
        return merge_heads(v)
    if kind == "attention_blur":
        blurred = F.scaled_dot_product_attention(q.mean(dim=2, keepdim=True), k, v)
        return merge_heads(blurred.expand_as(q))
    if kind == "attention_skip":
        return torch.zeros_like(merge_heads(v))
    raise ValueError(f"unknown attention perturbation {kind!r}; known: {', '.join(PERTURBATIONS)}")
