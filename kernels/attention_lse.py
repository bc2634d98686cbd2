"""Attention that also tells the logarithm of its sum of exponentials, by which attentions over parts of the keys are joined.

Every backend of ``attention`` has a form here: that of the Triton kernel is :func:`.flash_attention.attention_lse_triton`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .attention import merge_heads
from .flash_attention import attention_lse_triton

Attended = tuple[Tensor, Tensor]  # the output [R, T, H K], and the log-sum-exp of the scores [R, H, T] fp32, natural


def attention_lse(q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """:func:`.attention.attention`, and ``log sum_j exp(q . k_j K^-1/2)`` of every query.  Shapes as there, lse [R, H, T].

    By the formula, in fp32 or better: scores are held whole, and derivatives reach both results.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(dtype) * q.shape[3] ** -0.5) @ k.to(dtype).mT
    lse = scores.logsumexp(dim=-1)
    return merge_heads((scores - lse[..., None]).exp() @ v.to(dtype)).to(v.dtype), lse


def attention_lse_cpu(q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """:func:`attention_lse` by PyTorch's flash attention for the CPU, which ``attention`` runs too; not for derivatives."""
    if q.dtype != k.dtype or q.dtype != v.dtype or torch.is_autocast_enabled("cpu"):
        return attention_lse(q, k, v)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return merge_heads(out), lse


def attention_lse_sdpa(q: Tensor, k: Tensor, v: Tensor, backends: tuple = ()) -> Attended:
    """:func:`attention_lse` by the first of PyTorch's kernels in the order ``backends`` that takes these operands."""
    from torch.nn.attention import SDPBackend

    taken = _taken(q, k, v, backends)
    if taken == SDPBackend.CUDNN_ATTENTION:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
        lse = lse.reshape(out.shape[:3])  # [R, H, T, 1]
    elif taken == SDPBackend.FLASH_ATTENTION:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    elif taken == SDPBackend.EFFICIENT_ATTENTION:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
        lse = lse[..., : q.shape[2]].contiguous()  # padded to a multiple of 32 queries
    else:
        return attention_lse(q, k, v)
    return merge_heads(out), lse


def _taken(q: Tensor, k: Tensor, v: Tensor, backends: tuple) -> object:
    """The first of ``backends`` that takes these operands: by dtype and head dim where nothing runs (``meta``), else as
    PyTorch itself decides."""
    from torch.backends import cuda
    from torch.nn.attention import SDPBackend

    if q.device.type == "meta":
        half = q.dtype in (torch.float16, torch.bfloat16) and q.shape[3] % 8 == 0
        return next((each for each in backends if half or each == SDPBackend.EFFICIENT_ATTENTION), SDPBackend.MATH)
    if q.shape[3] % 8:  # the flash operator itself does not pad, as scaled_dot_product_attention does around it
        backends = tuple(each for each in backends if each != SDPBackend.FLASH_ATTENTION)
    parameters = cuda.SDPAParams(q, k, v, None, 0.0, False, False)
    takes = {
        SDPBackend.CUDNN_ATTENTION: cuda.can_use_cudnn_attention,
        SDPBackend.FLASH_ATTENTION: cuda.can_use_flash_attention,
        SDPBackend.EFFICIENT_ATTENTION: cuda.can_use_efficient_attention,
    }
    return next((each for each in backends if each in takes and takes[each](parameters)), SDPBackend.MATH)


def attention_lse_xformers(q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """:func:`attention_lse` by xformers, which wants [R, T, H, K] and may pad the queries of the log-sum-exp."""
    from xformers.ops import memory_efficient_attention_forward_requires_grad

    out, lse = memory_efficient_attention_forward_requires_grad(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.flatten(2), lse[..., : q.shape[2]].contiguous()


FORMS: dict[str, Callable[..., Attended]] = {  # by the backend of ``attention``
    "reference": attention_lse,
    "triton": attention_lse_triton,
    "bounded": partial(attention_lse_triton, bounded=True),
    "sdpa": attention_lse_sdpa,
    "xformers": attention_lse_xformers,
}
