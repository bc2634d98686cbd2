"""ProbSparse attention: the queries whose scores stand out attend, all others get the mean of the values."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .attention import attention
from .flash_attention import MAX_HEAD_DIM, split_head_dim, stride_arguments
from .launch_lookup import launch_config
from .shape_class import FULL_PRECISION, attention_class
from .triton_runtime import architecture, await_previous, dense, jit, launch, tl

FACTOR = 5  # of the usual budget; source: Informer (arXiv 2012.07436)


def usual_budget(tokens: int) -> int:
    """How many queries attend of ``tokens``, and by how many keys they are found, unless that is said: ``5 ceil(ln L)``."""
    return min(tokens, max(1, FACTOR * math.ceil(math.log(tokens))))


def query_spread(q: Tensor, k: Tensor, count: int) -> Tensor:
    """How far the best score of a query stands above its mean score, ``max_j s_j - mean_j s_j`` over ``count`` keys.

    q, k [R, H, T, K] -> [R, H, T] in fp32 (fp64 of fp64), ``s = q k K^-0.5``.  The keys are every ``T / count``-th, rounded
    down, so the same for all queries.  Source: Informer (arXiv 2012.07436, equation 5), which draws them at random.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(dtype) * q.shape[3] ** -0.5) @ k[:, :, _chosen_keys(k, count)].to(dtype).mT
    return scores.amax(dim=-1) - scores.mean(dim=-1)


def _chosen_keys(k: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=k.device) * k.shape[2] // count


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: int,
    keys: int,
    attend: Callable = attention,
    spread: Callable = query_spread,
) -> Tensor:
    """Self-attention of the ``queries`` queries of each head whose :func:`query_spread` over ``keys`` keys is largest.

    q, k, v [R, H, T, K] -> [R, T, H * K].  Every other query gets ``mean(v)``, the limit of equal scores.  With as many
    ``queries`` as tokens this is ``attend(q, k, v)``.  A reconstruction of EFDiT's ProAttention (arXiv 2512.05152) by
    Informer's rule (arXiv 2012.07436).
    """
    rows, heads, tokens, head_dim = q.shape
    if queries >= tokens:
        return attend(q, k, v)
    chosen = spread(q, k, min(keys, tokens)).topk(queries, dim=-1).indices  # [R, H, queries]
    attended = attend(q.gather(2, chosen[..., None].expand(-1, -1, -1, head_dim)), k, v)
    mean = v.mean(dim=2, dtype=torch.promote_types(v.dtype, torch.float32)).to(v.dtype)
    places = chosen.transpose(1, 2)[..., None].expand(-1, -1, -1, head_dim)  # [R, queries, H, K]
    out = mean[:, None].expand(rows, tokens, heads, head_dim).scatter(1, places, attended.unflatten(2, (heads, head_dim)))
    return out.flatten(2)


@jit(do_not_specialize=["tokens"])
def spread_kernel(
    p_q,
    p_k,
    p_o,
    tokens,
    q_row,
    q_head,
    q_token,
    k_row,
    k_head,
    k_token,
    scale,
    HEADS: tl.constexpr,
    COUNT: tl.constexpr,
    K: tl.constexpr,
    PART: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Scores of a block of queries with ``COUNT`` keys, of which the maximum and the sum are kept.  Grid (blocks, R * H).

    Head dims are cut in two parts and strides counted in units of ``ALIGN``, as in the attention kernel.
    """
    await_previous(DEPENDENT)
    row = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    p_q += (row * q_row + head * q_head) * ALIGN
    p_k += (row * k_row + head * k_head) * ALIGN
    o_query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_query = o_query < tokens
    o_part = tl.arange(0, PART)
    m_part = o_part < K
    o_q = o_query[:, None] * (q_token * ALIGN)
    b_q = tl.load(p_q + o_q + o_part[None, :], mask=m_query[:, None] & m_part[None, :], other=0.0)
    b_q2 = 0.0
    if REST > 0:
        o_rest = PART + tl.arange(0, REST)
        m_rest = o_rest < K
        b_q2 = tl.load(p_q + o_q + o_rest[None, :], mask=m_query[:, None] & m_rest[None, :], other=0.0)
    b_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)
    for start in range(0, COUNT, BLOCK_K):
        o_key = start + tl.arange(0, BLOCK_K)
        m_key = o_key < COUNT
        o_k = (o_key.to(tl.int64) * tokens // COUNT) * (k_token * ALIGN)
        b_k = tl.load(p_k + o_k[None, :] + o_part[:, None], mask=m_key[None, :] & m_part[:, None], other=0.0)
        b_s = tl.dot(b_q, b_k, input_precision=PRECISION)
        if REST > 0:
            b_k2 = tl.load(p_k + o_k[None, :] + o_rest[:, None], mask=m_key[None, :] & m_rest[:, None], other=0.0)
            b_s = tl.dot(b_q2, b_k2, b_s, input_precision=PRECISION)
        b_sum += tl.sum(b_s, 1)  # keys beyond the last are zero
        b_max = tl.maximum(b_max, tl.max(tl.where(m_key[None, :], b_s, float("-inf")), 1))
    p_o += (row * HEADS + head) * tokens
    tl.store(p_o + o_query, (b_max - b_sum / COUNT) * scale, mask=m_query)


def query_spread_triton(q: Tensor, k: Tensor, count: int) -> Tensor:
    """:func:`query_spread` as one kernel, for head dims up to 128; only strided channels are copied."""
    rows, heads, tokens, head_dim = q.shape
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"the kernel of query_spread takes head dims up to {MAX_HEAD_DIM}, got {head_dim}")
    if k.shape != q.shape or not 1 <= count <= tokens:
        raise ValueError(f"q, k and {count} keys do not fit: {tuple(q.shape)}, {tuple(k.shape)}")
    q, k = dense(q), dense(k)
    part, rest = split_head_dim(head_dim)
    shape_class = FULL_PRECISION if q.dtype == torch.float32 else attention_class(head_dim, tokens)
    config = launch_config("attention", shape_class, architecture(q.device))  # whose tiles are larger: these fit too
    out = torch.empty(rows, heads, tokens, dtype=torch.float32, device=q.device)
    arguments = {"p_q": q, "p_k": k, "p_o": out, "tokens": tokens}
    arguments |= stride_arguments(q=q, k=k)
    arguments |= {"scale": head_dim**-0.5, "HEADS": heads, "COUNT": count, "K": head_dim, "PART": part, "REST": rest}
    arguments |= {"BLOCK_Q": config.block_q, "BLOCK_K": config.block_k, "PRECISION": "ieee"}
    launch(spread_kernel, (-(-tokens // config.block_q), rows * heads), arguments, config.warps, config.stages)
    return out


def bytes_moved(rows: int, heads: int, tokens: int, count: int, head_dim: int, itemsize: int) -> int:
    """Least device-memory traffic of :func:`query_spread`: q and the chosen keys in, a number for each query out."""
    return rows * heads * ((tokens + count) * head_dim * itemsize + 4 * tokens)


def flops(rows: int, heads: int, tokens: int, count: int, head_dim: int) -> int:
    """One product of T queries with ``count`` keys."""
    return 2 * rows * heads * tokens * count * head_dim
