"""Scaled dot-product attention over split heads, and the perturbed variants used by weak branches."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .launch_lookup import launch_config
from .shape_class import FULL_PRECISION, attention_class
from .triton_runtime import (
    architecture,
    compute_capability,
    cudnn_version,
    dense,
    jit,
    launch,
    next_power_of_two,
    tl,
)

PERTURBATIONS = ("attention_identity", "attention_identity_image", "attention_skip", "attention_blur", "attention_shuffle")
MAX_HEAD_DIM = 128


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


@jit()
def attend_keys(
    b_q,
    b_q2,
    b_o,
    b_o2,
    b_max,
    b_sum,
    p_k,
    p_v,
    first,
    last,
    keys,
    k_token,
    v_token,
    scale_log2,
    K: tl.constexpr,
    PART: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Online softmax over the keys [first, last) for one block of queries; ``MASKED`` when some lie beyond ``keys``."""
    o_part = tl.arange(0, PART)
    for start in range(first, last, BLOCK_K):
        o_key = start + tl.arange(0, BLOCK_K)
        m_key = o_key < keys
        m_part = o_part < K
        p_kt = p_k + o_key[None, :] * k_token + o_part[:, None]
        p_vt = p_v + o_key[:, None] * v_token + o_part[None, :]
        if MASKED:
            b_k = tl.load(p_kt, mask=m_key[None, :] & m_part[:, None], other=0.0)
            b_v = tl.load(p_vt, mask=m_key[:, None] & m_part[None, :], other=0.0)
        elif PART > K:
            b_k = tl.load(p_kt, mask=m_part[:, None], other=0.0)
            b_v = tl.load(p_vt, mask=m_part[None, :], other=0.0)
        else:
            b_k = tl.load(p_kt)
            b_v = tl.load(p_vt)
        b_s = tl.dot(b_q, b_k, input_precision=PRECISION)
        if REST > 0:
            o_rest = PART + tl.arange(0, REST)
            m_rest = o_rest < K
            m_krest = m_rest[:, None] & m_key[None, :] if MASKED else m_rest[:, None]
            m_vrest = m_rest[None, :] & m_key[:, None] if MASKED else m_rest[None, :]
            b_k2 = tl.load(p_k + o_key[None, :] * k_token + o_rest[:, None], mask=m_krest, other=0.0)
            b_v2 = tl.load(p_v + o_key[:, None] * v_token + o_rest[None, :], mask=m_vrest, other=0.0)
            b_s = tl.dot(b_q2, b_k2, b_s, input_precision=PRECISION)
        b_s = b_s * scale_log2
        if MASKED:
            b_s = tl.where(m_key[None, :], b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new[:, None])
        b_shrink = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_max = b_new
        b_p = b_p.to(b_v.dtype)
        b_o = tl.dot(b_p, b_v, b_o * b_shrink[:, None], input_precision=PRECISION)
        if REST > 0:
            b_o2 = tl.dot(b_p, b_v2, b_o2 * b_shrink[:, None], input_precision=PRECISION)
    return b_o, b_o2, b_max, b_sum


@jit(do_not_specialize=["queries", "keys"])
def attention_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    p_lse,
    queries,
    keys,
    q_row,
    q_head,
    q_token,
    k_row,
    k_head,
    k_token,
    v_row,
    v_head,
    v_token,
    scale_log2,
    HEADS: tl.constexpr,
    K: tl.constexpr,
    PART: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    LSE: tl.constexpr,
):
    """Flash attention (arXiv 2307.08691), forward.  Grid (query blocks, R * H); output [R, T, H * K] contiguous.

    With ``LSE`` the natural log-sum-exp of each query's scores goes to [R, H, T].

    A head dim that is no power of two is cut in two parts, ``PART`` and ``REST`` (72 = 64 + 16, half of it padding), which
    costs less than padding it to the next power (128).  Strides come in units of ``ALIGN`` elements, so that a stride like
    72 is known to allow vector loads.
    """
    row = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    p_q += (row * q_row + head * q_head) * ALIGN
    p_k += (row * k_row + head * k_head) * ALIGN
    p_v += (row * v_row + head * v_head) * ALIGN
    o_query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_query = o_query < queries
    o_part = tl.arange(0, PART)
    o_q = o_query[:, None] * (q_token * ALIGN)
    b_q = tl.load(p_q + o_q + o_part[None, :], mask=m_query[:, None] & (o_part < K)[None, :], other=0.0)
    b_o = tl.zeros([BLOCK_Q, PART], tl.float32)
    b_q2 = 0.0
    b_o2 = 0.0
    if REST > 0:
        o_rest = PART + tl.arange(0, REST)
        b_q2 = tl.load(p_q + o_q + o_rest[None, :], mask=m_query[:, None] & (o_rest < K)[None, :], other=0.0)
        b_o2 = tl.zeros([BLOCK_Q, REST], tl.float32)
    b_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)
    full = keys // BLOCK_K * BLOCK_K
    b_o, b_o2, b_max, b_sum = attend_keys(
        b_q, b_q2, b_o, b_o2, b_max, b_sum, p_k, p_v, 0, full, keys,
        k_token * ALIGN, v_token * ALIGN, scale_log2, K, PART, REST, BLOCK_K, False, PRECISION,
    )  # fmt: skip
    if full < keys:
        b_o, b_o2, b_max, b_sum = attend_keys(
            b_q, b_q2, b_o, b_o2, b_max, b_sum, p_k, p_v, full, keys, keys,
            k_token * ALIGN, v_token * ALIGN, scale_log2, K, PART, REST, BLOCK_K, True, PRECISION,
        )  # fmt: skip
    if LSE:
        b_lse = (b_max + tl.log2(b_sum)) * 0.6931471805599453
        tl.store(p_lse + (row * HEADS + head) * queries + o_query, b_lse, mask=m_query)
    p_o += (row * queries * HEADS + head) * K
    o_o = o_query[:, None] * (HEADS * K)
    b_o = (b_o / b_sum[:, None]).to(p_o.dtype.element_ty)
    tl.store(p_o + o_o + o_part[None, :], b_o, mask=m_query[:, None] & (o_part < K)[None, :])
    if REST > 0:
        b_o2 = (b_o2 / b_sum[:, None]).to(p_o.dtype.element_ty)
        tl.store(p_o + o_o + o_rest[None, :], b_o2, mask=m_query[:, None] & (o_rest < K)[None, :])


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """Two powers of two of at least 16 (or 0) that cover a head dim with less padding than one does."""
    whole = max(16, next_power_of_two(head_dim))
    part = whole // 2
    rest = max(16, next_power_of_two(max(head_dim - part, 1)))
    return (part, rest) if part >= 16 and part + rest < whole else (whole, 0)


def attention_triton(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """:func:`attention` as one kernel, for any lengths and head dims up to 128; only strided channels are copied."""
    return _attend(q, k, v, None)


def attention_lse_triton(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`attention_triton`, and the log-sum-exp of the scores of every query, [R, H, T] fp32."""
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    return _attend(q, k, v, lse), lse


def _attend(q: Tensor, k: Tensor, v: Tensor, lse: Tensor | None) -> Tensor:
    rows, heads, queries, head_dim = q.shape
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"the attention kernel takes head dims up to {MAX_HEAD_DIM}, got {head_dim}")
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != head_dim or not k.shape[2]:
        raise ValueError(f"q, k, v do not fit: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    q, k, v = dense(q), dense(k), dense(v)
    part, rest = split_head_dim(head_dim)
    # fp32 products run without tensor cores, on registers: their tiles must be small
    shape_class = FULL_PRECISION if q.dtype == torch.float32 else attention_class(head_dim, k.shape[2])
    config = launch_config("attention", shape_class, architecture(q.device))
    out = torch.empty(rows, queries, heads * head_dim, dtype=q.dtype, device=q.device)
    arguments = {"p_q": q, "p_k": k, "p_v": v, "p_o": out, "p_lse": out if lse is None else lse}
    arguments |= {"queries": queries, "keys": k.shape[2], "LSE": lse is not None}
    arguments |= stride_arguments(q=q, k=k, v=v)
    arguments |= {"scale_log2": head_dim**-0.5 * math.log2(math.e), "HEADS": heads, "K": head_dim, "PART": part}
    arguments |= {"REST": rest, "BLOCK_Q": config.block_q, "BLOCK_K": config.block_k, "PRECISION": "ieee"}
    grid = (-(-queries // config.block_q), rows * heads)
    launch(attention_kernel, grid, arguments, config.warps, config.stages)
    return out


def stride_arguments(**operands: Tensor) -> dict[str, int]:
    """``NAME_row``, ``NAME_head``, ``NAME_token`` of each [R, H, T, K], in units of ``ALIGN`` numbers: 8 where all allow it."""
    axes = ("row", "head", "token")
    strides = {f"{name}_{axis}": x.stride(i) for name, x in operands.items() for i, axis in enumerate(axes)}
    align = 8 if all(stride % 8 == 0 for stride in strides.values()) else 1
    return {name: stride // align for name, stride in strides.items()} | {"ALIGN": align}


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
