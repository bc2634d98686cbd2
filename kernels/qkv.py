"""From a fused QKV projection to split heads, with optional per-head RMSNorm of q and k."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch_lookup import launch_config
from .shape_class import heads_class
from .triton_runtime import architecture, await_previous, dense, jit, launch, next_power_of_two, tl


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [R, T, 3 D] -> q, k, v [R, H, T, K], views."""
    rows, tokens, width = qkv.shape
    q, k, v = qkv.view(rows, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    return q, k, v


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, computed in fp32 or better, in the dtype of ``x``.

    Written to ``out`` when given.  Reads or writes ``x`` five times, in any layout, which it keeps; PyTorch's own copies it
    first, nine in all on the CPU.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    scaled = x * torch.rsqrt(norm.square() / x.shape[-1] + eps)
    return (scaled * weight).to(x.dtype) if out is None else torch.mul(scaled, weight, out=out)


def split_heads_norm(
    qkv: Tensor, heads: int, q_weight: Tensor | None = None, k_weight: Tensor | None = None, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`split_heads`, then RMSNorm over each head of q and k when weights [K] are given.

    Source: query-key normalisation as in SD3 (arXiv 2403.03206, section 5.3.2).
    """
    q, k, v = split_heads(qkv, heads)
    if q_weight is not None:
        q, k = rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)
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
    if image_weights is None and text_weights is None:
        return split_heads(torch.cat([image, text], dim=1), heads)
    rows, tokens, width = image.shape
    # each part goes where it is read, in the order [R, T, H, K] in which the heads merge after attention
    joint = image.new_empty(3, rows, tokens + text.shape[1], heads, width // (3 * heads)).transpose(2, 3)
    for stream, weights, place in ((image, image_weights, slice(tokens)), (text, text_weights, slice(tokens, None))):
        for i, (part, weight) in enumerate(zip(split_heads(stream, heads), (*(weights or (None, None)), None), strict=True)):
            out = joint[i, :, :, place]
            out.copy_(part) if weight is None else rms_norm(part, weight, eps, out=out)
    return joint[0], joint[1], joint[2]


@jit(do_not_specialize=["tokens", "offset", "total"])
def write_heads(
    p_qkv,
    p_q_weight,
    p_k_weight,
    p_out,
    block,
    row,
    tokens,
    offset,
    total,
    qkv_row,
    qkv_token,
    part_stride,
    eps,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
    NORM: tl.constexpr,
):
    """One block of (token, head) pairs of one stream: q and k normalised, the first ``PARTS`` of q, k, v written."""
    pair = block * PAIRS + tl.arange(0, PAIRS)
    o_k = tl.arange(0, BLOCK_K)
    m_x = (pair < tokens * H)[:, None] & (o_k < K)[None, :]
    token = pair // H
    o_in = row * qkv_row + token[:, None] * qkv_token + (pair % H)[:, None] * K + o_k[None, :]
    o_out = row * total * (H * K) + (offset * H + pair)[:, None] * K + o_k[None, :]
    for part in tl.static_range(PARTS):
        b_x = tl.load(p_qkv + o_in + part * (H * K), mask=m_x, other=0.0)
        if NORM and part < 2:
            p_weight = p_q_weight if part == 0 else p_k_weight
            b_weight = tl.load(p_weight + o_k, mask=o_k < K, other=0.0).to(tl.float32)
            b_f = b_x.to(tl.float32)
            b_f = b_f * tl.rsqrt(tl.sum(b_f * b_f, 1) / K + eps)[:, None] * b_weight[None, :]
            b_x = b_f.to(b_x.dtype)
        tl.store(p_out + part * part_stride.to(tl.int64) + o_out, b_x, mask=m_x)


@jit(do_not_specialize=["tokens", "text_tokens", "blocks"])
def heads_kernel(
    p_qkv,
    p_q_weight,
    p_k_weight,
    p_text,
    p_text_q_weight,
    p_text_k_weight,
    p_out,
    tokens,
    text_tokens,
    blocks,
    qkv_row,
    qkv_token,
    text_row,
    text_token,
    part_stride,
    eps,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
    NORM: tl.constexpr,
    TEXT: tl.constexpr,
    TEXT_NORM: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Grid (blocks of the image, then of the text; R).  Output [PARTS, R, L + M, H, K], image tokens first."""
    await_previous(DEPENDENT)
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    if block < blocks:
        write_heads(
            p_qkv, p_q_weight, p_k_weight, p_out, block, row, tokens, 0, tokens + text_tokens,
            qkv_row, qkv_token, part_stride, eps, H, K, BLOCK_K, PAIRS, PARTS, NORM,
        )  # fmt: skip
    elif TEXT:
        write_heads(
            p_text, p_text_q_weight, p_text_k_weight, p_out, block - blocks, row, text_tokens, tokens, tokens + text_tokens,
            text_row, text_token, part_stride, eps, H, K, BLOCK_K, PAIRS, PARTS, TEXT_NORM,
        )  # fmt: skip


def _write(
    qkv: Tensor,
    weights: tuple[Tensor, Tensor] | None,
    text: Tensor | None,
    text_weights: tuple[Tensor, Tensor] | None,
    heads: int,
    parts: int,
    eps: float,
) -> Tensor:
    """The first ``parts`` of q, k, v as [parts, R, T, H, K], of one stream or of two joined ones."""
    rows, tokens, width = qkv.shape
    head_dim, text_tokens = width // (3 * heads), 0 if text is None else text.shape[1]
    if width != 3 * heads * head_dim or (text is not None and (text.shape[0], text.shape[2]) != (rows, width)):
        shapes = [tuple(x.shape) for x in (qkv, text) if x is not None]
        raise ValueError(f"fused projections must be [R, T, 3 D] with D a multiple of {heads} heads, got {shapes}")
    qkv = dense(qkv)
    other = qkv if text is None else dense(text)
    out = torch.empty(parts, rows, tokens + text_tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    config = launch_config("heads", heads_class(rows * (tokens + text_tokens), head_dim), architecture(qkv.device))
    blocks, text_blocks = (-(-count * heads // config.rows) for count in (tokens, text_tokens))
    (q_weight, k_weight), (text_q_weight, text_k_weight) = (
        tuple(weight.contiguous() for weight in pair) if pair else (qkv, qkv) for pair in (weights, text_weights)
    )
    arguments = {"p_qkv": qkv, "p_q_weight": q_weight, "p_k_weight": k_weight, "p_text": other}
    arguments |= {"p_text_q_weight": text_q_weight, "p_text_k_weight": text_k_weight, "p_out": out, "tokens": tokens}
    arguments |= {"text_tokens": text_tokens, "blocks": blocks, "qkv_row": qkv.stride(0), "qkv_token": qkv.stride(1)}
    arguments |= {"text_row": other.stride(0), "text_token": other.stride(1), "part_stride": out.stride(0), "eps": eps}
    arguments |= {"H": heads, "K": head_dim, "BLOCK_K": next_power_of_two(head_dim), "PAIRS": config.rows, "PARTS": parts}
    arguments |= {"NORM": weights is not None, "TEXT": text is not None, "TEXT_NORM": text_weights is not None}
    launch(heads_kernel, (blocks + text_blocks, rows), arguments, config.warps)
    return out


def split_heads_norm_triton(
    qkv: Tensor, heads: int, q_weight: Tensor | None = None, k_weight: Tensor | None = None, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`split_heads_norm`: views without a norm; with one, q and k in one kernel and v a view."""
    if q_weight is None:
        return split_heads(qkv, heads)
    q, k = _write(qkv, (q_weight, k_weight), None, None, heads, 2, eps).transpose(2, 3)
    return q, k, split_heads(qkv, heads)[2]


def joint_heads_norm_triton(
    image: Tensor,
    text: Tensor,
    heads: int,
    image_weights: tuple[Tensor, Tensor] | None = None,
    text_weights: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`joint_heads_norm` as one kernel over both streams.

    The results are [R, H, L + M, K] views of memory in the order [R, L + M, H, K]: attention kernels return the layout of
    their queries, so the heads merge without a copy.
    """
    q, k, v = _write(image, image_weights, text, text_weights, heads, 3, eps).transpose(2, 3)
    return q, k, v


def bytes_moved(rows: int, tokens: int, width: int, itemsize: int, parts: int) -> int:
    """``parts`` of q, k, v in and out once; tokens of both streams together; the [K] weights are not counted."""
    return 2 * parts * rows * tokens * width * itemsize


def flops(rows: int, tokens: int, width: int, norm: bool) -> int:
    """RMSNorm of q and k: square and sum 2, scale 2, per element."""
    return 2 * 4 * rows * tokens * width if norm else 0
