"""Attention as one Triton kernel (flash attention, arXiv 2307.08691), with a running maximum or without one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .descriptors import describable, descriptor, has_descriptors
from .launch_lookup import launch_config
from .shape_class import FULL_PRECISION, attention_class
from .triton_runtime import architecture, await_previous, dense, jit, launch, next_power_of_two, tl

MAX_HEAD_DIM = 128
# Without a running maximum exp(q . k / sqrt(K)) is 2^s with |s| up to this: sums over 2^16 keys, of values up to 2^11, fit
# what fp32 and bf16 can hold.
LARGEST_SCORE = 100.0


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
    row,
    head,
    scale_log2,
    K: tl.constexpr,
    PART: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """Softmax over the keys [first, last) for one block of queries; ``MASKED`` when some lie beyond ``keys``.

    With a running maximum, unless the scores are ``BOUNDED``: then no power of two among them overflows.
    """
    o_part = tl.arange(0, PART)
    for start in range(first, last, BLOCK_K):
        o_key = start + tl.arange(0, BLOCK_K)
        m_key = o_key < keys
        m_part = o_part < K
        if DESCRIPTORS:  # keys and channels beyond the end are zeros
            b_k = tl.trans(tl.reshape(p_k.load([row, start, head, 0]), [BLOCK_K, PART]))
            b_v = tl.reshape(p_v.load([row, start, head, 0]), [BLOCK_K, PART])
        else:
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
        if MASKED:
            b_s = tl.where(m_key[None, :], b_s, float("-inf"))
        if BOUNDED:
            b_p = tl.exp2(b_s * scale_log2)
            b_sum += tl.sum(b_p, 1)
        else:  # the maximum is scaled, so that a score takes one multiply-add
            b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale_log2)
            b_p = tl.exp2(b_s * scale_log2 - b_new[:, None])
            b_shrink = tl.exp2(b_max - b_new)
            b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
            b_max = b_new
            b_o = b_o * b_shrink[:, None]
            if REST > 0:
                b_o2 = b_o2 * b_shrink[:, None]
        b_p = b_p.to(b_v.dtype)
        b_o = tl.dot(b_p, b_v, b_o, input_precision=PRECISION)
        if REST > 0:
            b_o2 = tl.dot(b_p, b_v2, b_o2, input_precision=PRECISION)
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
    DESCRIPTORS: tl.constexpr,
    BOUNDED: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Flash attention (arXiv 2307.08691), forward.  Grid (query blocks, R * H); output [R, T, H * K] contiguous.

    With ``LSE`` the natural log-sum-exp of each query's scores goes to [R, H, T].

    A head dim that is no power of two is cut in two parts, ``PART`` and ``REST`` (72 = 64 + 16, half of it padding), which
    costs less than padding it to the next power (128).  Strides come in units of ``ALIGN`` elements, so that a stride like
    72 is known to allow vector loads.
    """
    await_previous(DEPENDENT)
    row = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    p_q += (row * q_row + head * q_head) * ALIGN
    if not DESCRIPTORS:
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
    b_max = tl.full([BLOCK_Q], 0.0 if BOUNDED else float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)
    full = keys // BLOCK_K * BLOCK_K
    b_o, b_o2, b_max, b_sum = attend_keys(
        b_q, b_q2, b_o, b_o2, b_max, b_sum, p_k, p_v, 0, full, keys,
        k_token * ALIGN, v_token * ALIGN, row.to(tl.int32), head.to(tl.int32), scale_log2,
        K, PART, REST, BLOCK_K, False, PRECISION, DESCRIPTORS, BOUNDED,
    )  # fmt: skip
    if full < keys:
        b_o, b_o2, b_max, b_sum = attend_keys(
            b_q, b_q2, b_o, b_o2, b_max, b_sum, p_k, p_v, full, keys, keys,
            k_token * ALIGN, v_token * ALIGN, row.to(tl.int32), head.to(tl.int32), scale_log2,
            K, PART, REST, BLOCK_K, True, PRECISION, DESCRIPTORS, BOUNDED,
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
    return _attend(q, k, v, None, False)


def attention_bounded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """:func:`attention_triton` without a running maximum: right where the scores stay within :data:`LARGEST_SCORE`.

    Not in fp16, which has no such powers of two.
    """
    return _attend(q, k, v, None, True)


def attention_lse_triton(q: Tensor, k: Tensor, v: Tensor, bounded: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`attention_triton`, and the log-sum-exp of the scores of every query, [R, H, T] fp32."""
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    return _attend(q, k, v, lse, bounded), lse


def _attend(q: Tensor, k: Tensor, v: Tensor, lse: Tensor | None, bounded: bool) -> Tensor:
    rows, heads, queries, head_dim = q.shape
    if bounded and q.dtype == torch.float16:
        raise ValueError("attention without a running maximum takes bfloat16 or float32, got float16")
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
    by_token = k.transpose(1, 2), v.transpose(1, 2)  # [R, S, H, K], the order in which projections leave them
    described = not rest and has_descriptors(q.device) and all(map(describable, by_token))
    arguments = {"p_q": q, "p_o": out, "p_lse": out if lse is None else lse} | stride_arguments(q=q, k=k, v=v)
    for name, x, y in (("p_k", k, by_token[0]), ("p_v", v, by_token[1])):
        arguments[name] = descriptor(y, [1, config.block_k, 1, part]) if described else x
    arguments |= {"queries": queries, "keys": k.shape[2], "LSE": lse is not None, "DESCRIPTORS": described}
    arguments |= {"BOUNDED": bounded}
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
