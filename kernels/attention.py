"""Scaled dot-product attention over split heads, and the perturbed variants used by weak branches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .triton_runtime import compute_capability, cudnn_version

PERTURBATIONS = ("attention_identity", "attention_identity_image", "attention_skip", "attention_blur", "attention_shuffle")


def merge_heads(o: Tensor) -> Tensor:
    """[R, H, T, K] -> [R, T, H * K]."""
    return o.transpose(1, 2).reshape(o.shape[0], o.shape[2], -1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale ``K ** -0.5``.  q [R, H, T, K]; k, v [R, H, S, K] -> [R, T, H * K]."""
    return merge_heads(F.scaled_dot_product_attention(q, k, v))


def perturbed_attention(q: Tensor, k: Tensor, v: Tensor, kind: str, attend: Callable = attention) -> Tensor:
    """Attention as a weak branch computes it.  q [R, H, L, K]; k, v [R, H, T, K] -> [R, L, H * K]; ``attend`` does softmaxes.

    ``attention_identity``: the map is the identity, so the output is V (PAG, arXiv 2403.17377); T = L.
    ``attention_identity_image``: a query meets its own key and the keys beyond the L-th, see :func:`attend_own_and_text`.
    ``attention_blur``: every query is the mean query, the limit of infinite blur (SEG, arXiv 2408.00760).
    ``attention_shuffle``: the outputs of the queries change places, see :func:`token_order` (after TPG, arXiv 2506.10036).
    ``attention_skip``: the output is zero (STG-A, arXiv 2411.18664); the caller must skip the projection bias too; T = L.
    """
    if kind == "attention_identity":
        return merge_heads(v)
    if kind == "attention_identity_image":
        return merge_heads(attend_own_and_text(q, k, v))
    if kind == "attention_blur":
        return attend(q.mean(dim=2, keepdim=True), k, v).expand(-1, q.shape[2], -1)
    if kind == "attention_skip":
        return torch.zeros_like(merge_heads(v))
    if kind == "attention_shuffle":
        return attend(q, k, v)[:, token_order(q.shape[2], q.device)]
    raise ValueError(f"unknown attention perturbation {kind!r}; known: {', '.join(PERTURBATIONS)}")


@cache
@torch.inference_mode(False)  # kept for the life of the process: also for runs with gradients
def token_order(tokens: int, device: torch.device) -> Tensor:
    """A fixed permutation [L] int64 of so many tokens, the same everywhere."""
    return torch.randperm(tokens, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(device)


def attend_own_and_text(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of image queries whose map among image tokens is the identity, while text attention is kept.

    q [R, H, L, K]; k, v [R, H, L + M, K], the image's first -> [R, H, L, K].  Without text (M = 0) the output is V.  Scores
    are [R, H, L, 1 + M], not [R, H, L, L + M].  Source: PAG (arXiv 2403.17377) as diffusers carries it over to SD3's joint
    attention (``PAGJointAttnProcessor2_0``), where a mask forbids the pairs of different image tokens.
    """
    tokens = q.shape[2]
    if k.shape[2] == tokens:
        return v
    dtype = torch.promote_types(q.dtype, torch.float32)
    exact, keys = q.to(dtype) * q.shape[3] ** -0.5, k.to(dtype)
    own = (exact * keys[:, :, :tokens]).sum(dim=-1, keepdim=True)
    weights = torch.cat([own, exact @ keys[:, :, tokens:].mT], dim=-1).softmax(dim=-1).to(v.dtype)  # [R, H, L, 1 + M]
    return torch.addcmul(weights[..., 1:] @ v[:, :, tokens:], weights[..., :1], v[:, :, :tokens])


def attention_sdpa(q: Tensor, k: Tensor, v: Tensor, backends: tuple = ()) -> Tensor:
    """:func:`attention` by PyTorch's kernels in the order ``backends`` (``torch.nn.attention.SDPBackend``)."""
    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(list(backends), set_priority=True):
        return attention(q, k, v)


def attention_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """:func:`attention` by xformers, which wants [R, T, H, K]."""
    from xformers.ops import memory_efficient_attention

    out = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.flatten(2)


CUDNN_WITH_ODD_LENGTHS = 91501  # the first cuDNN whose attention is sound for lengths that are no multiple of 128


def sdpa_order(device: torch.device) -> tuple[tuple, str]:
    """The order in which PyTorch's attention kernels are tried on ``device``, and why."""
    from torch.nn.attention import SDPBackend

    rest = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    if torch.version.hip or compute_capability(device) < (9, 0):
        return rest, "flash, efficient, math: cuDNN is fastest from sm_90 on"
    version = cudnn_version()
    if version < CUDNN_WITH_ODD_LENGTHS:
        return rest, f"flash, efficient, math: cuDNN {version} is older than {CUDNN_WITH_ODD_LENGTHS}"
    return (SDPBackend.CUDNN_ATTENTION, *rest), f"cuDNN {version}, flash, efficient, math, in this order"


def bytes_moved(rows: int, heads: int, queries: int, keys: int, head_dim: int, itemsize: int) -> int:
    """Least device-memory traffic: q in, k and v in once (later reads hit L2), the output out."""
    return rows * heads * head_dim * itemsize * 2 * (queries + keys)


def flops(rows: int, heads: int, queries: int, keys: int, head_dim: int) -> int:
    """Two products of 2 T S K each; the softmax is not counted, as is customary."""
    return 4 * rows * heads * queries * keys * head_dim
