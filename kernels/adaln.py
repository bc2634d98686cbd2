"""Adaptive layer norm (adaLN): LayerNorm, modulation and the gated residual around it.

Every operation of this file is one pass over the hidden state: ``h' = h + gate * y`` rounded to the dtype of ``h`` and
written back, then ``LayerNorm(h') * (1 + scale) + shift`` once or twice.  Source: DiT (arXiv 2212.09748), adaLN-Zero block; two
modulated outputs of one norm, and two residuals before it: the dual-attention blocks of SD3.5.  :mod:`.adaln_fp8` has those
whose outputs are quantised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .fp8 import FP8_MAX, Fp8Rows, store_quantized_row
from .launch_lookup import launch_config
from .shape_class import row_class
from .triton_runtime import architecture, await_previous, dense, jit, launch, next_power_of_two, tl

MAX_WIDTH = 4096  # a row is held in registers


def modulated_norm(h: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """``LayerNorm(h) * (1 + scale) + shift`` (no affine), in the dtype of ``h``, written over the norm itself.

    h [R, L, D]; shift, scale [R, 1, D].
    """
    n = F.layer_norm(h, h.shape[-1:], eps=eps)
    return modulated(n, shift, scale, out=n)


def modulated(n: Tensor, shift: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """``n * (1 + scale) + shift`` in the dtype of ``n``, written to ``out`` when given.

    The second pass over ``n``.  A call of ``F.layer_norm`` for each row, with the row's vectors as its affine, must be copied
    to its place, so it moves as much, and it is slower where rows are many and short.
    """
    return torch.addcmul(shift, n, 1 + scale, out=out).to(n.dtype)


def gated_residual(h: Tensor, y: Tensor, gate: Tensor, bias: Tensor | None = None) -> Tensor:
    """``h += gate * (y + bias)`` in place; returns ``h``.  h, y [R, L, D]; gate [R, 1, D]; bias [D], zero without."""
    return torch.addcmul(h, y if bias is None else y + bias, gate, out=h)


def residual_modulated_norm(
    h: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``h += gate * (y + bias)`` in place, then ``modulated_norm(h)``; returns ``(h, n)``.

    h, y [R, L, D]; gate, shift, scale [R, 1, D]; bias [D].
    """
    gated_residual(h, y, gate, bias)
    return h, modulated_norm(h, shift, scale, eps)


def modulated_norm2(
    h: Tensor, shift: Tensor, scale: Tensor, shift2: Tensor, scale2: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """One LayerNorm with two modulations; returns ``(n, n2)``.  Shapes as :func:`modulated_norm`."""
    n = F.layer_norm(h, h.shape[-1:], eps=eps)
    first = modulated(n, shift, scale)
    return first, modulated(n, shift2, scale2, out=n)


def residual_modulated_norm2(
    h: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    shift2: Tensor,
    scale2: Tensor,
    eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``h += gate * (y + bias)`` in place, then ``modulated_norm2(h)``; returns ``(h, n, n2)``."""
    gated_residual(h, y, gate, bias)
    return h, *modulated_norm2(h, shift, scale, shift2, scale2, eps)


def residual2_modulated_norm(
    h: Tensor,
    y: Tensor,
    y2: Tensor,
    gate: Tensor,
    gate2: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``h += gate * (y + bias) + gate2 * y2`` in place, then ``modulated_norm(h)``: ``(h, n)``; a kernel rounds ``h`` once."""
    gated_residual(h, y, gate, bias)
    return residual_modulated_norm(h, y2, gate2, shift, scale, eps)


@jit()
def store_norm(p_n, p_row_scale, b_n, index, o_d, m_d, D: tl.constexpr, FP8_TOP: tl.constexpr):
    """Write a modulated norm as row ``index`` (int64) of a dense output, in its dtype or quantised."""
    if FP8_TOP > 0:
        store_quantized_row(p_n, p_row_scale, b_n, index, o_d, m_d, D, FP8_TOP)
    else:
        tl.store(p_n + index * D + o_d, b_n.to(p_n.dtype.element_ty), mask=m_d)


@jit(do_not_specialize=["tokens"])
def adaln_kernel(
    p_h,
    p_y,
    p_gate,
    p_bias,
    p_y2,
    p_gate2,
    p_shift,
    p_scale,
    p_shift2,
    p_scale2,
    p_n,
    p_n2,
    p_row_scale,
    p_row_scale2,
    tokens,
    h_row,
    h_token,
    y_row,
    y_token,
    gate_row,
    y2_row,
    y2_token,
    gate2_row,
    shift_row,
    scale_row,
    shift2_row,
    scale2_row,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
    RESIDUALS: tl.constexpr,
    BIAS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    FP8_TOP: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Grid (token blocks, R).  Two-pass mean and variance in fp32; ``FP8_TOP`` > 0 quantises the outputs by rows."""
    await_previous(DEPENDENT)
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * TOKENS
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    if RESIDUALS > 0:
        b_gate = tl.load(p_gate + row * gate_row + o_d, mask=m_d, other=0.0).to(tl.float32)
    if BIAS:
        b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    if RESIDUALS > 1:
        b_gate2 = tl.load(p_gate2 + row * gate2_row + o_d, mask=m_d, other=0.0).to(tl.float32)
    if OUTPUTS > 0:
        b_shift = tl.load(p_shift + row * shift_row + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_scale = tl.load(p_scale + row * scale_row + o_d, mask=m_d, other=0.0).to(tl.float32) + 1.0
    if OUTPUTS > 1:
        b_shift2 = tl.load(p_shift2 + row * shift2_row + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_scale2 = tl.load(p_scale2 + row * scale2_row + o_d, mask=m_d, other=0.0).to(tl.float32) + 1.0
    for token in range(first, tl.minimum(first + TOKENS, tokens)):
        o_h = row * h_row + token * h_token + o_d
        b_h = tl.load(p_h + o_h, mask=m_d, other=0.0).to(tl.float32)
        if RESIDUALS > 0:
            b_y = tl.load(p_y + row * y_row + token * y_token + o_d, mask=m_d, other=0.0).to(tl.float32)
            if BIAS:
                b_y += b_bias
            b_h += b_gate * b_y
            if RESIDUALS > 1:
                b_y2 = tl.load(p_y2 + row * y2_row + token * y2_token + o_d, mask=m_d, other=0.0).to(tl.float32)
                b_h += b_gate2 * b_y2
            b_new = b_h.to(p_h.dtype.element_ty)
            tl.store(p_h + o_h, b_new, mask=m_d)
            b_h = b_new.to(tl.float32)  # normalise what is stored, so that fused and separate calls agree to the bit
        if OUTPUTS > 0:
            centred = tl.where(m_d, b_h - tl.sum(b_h, 0) / D, 0.0)
            b_x = centred * tl.rsqrt(tl.sum(centred * centred, 0) / D + eps)
            index = row * tokens + token
            store_norm(p_n, p_row_scale, b_x * b_scale + b_shift, index, o_d, m_d, D, FP8_TOP)
            if OUTPUTS > 1:
                store_norm(p_n2, p_row_scale2, b_x * b_scale2 + b_shift2, index, o_d, m_d, D, FP8_TOP)


def run_adaln(
    h: Tensor,
    residuals: tuple[tuple[Tensor, Tensor], ...],
    modulations: tuple[tuple[Tensor, Tensor], ...],
    outputs: tuple[Tensor, ...] | tuple[Fp8Rows, ...],
    eps: float = 0.0,
    bias: Tensor | None = None,
) -> None:
    """Launch the kernel on ``residuals`` of (branch, gate); ``outputs`` are contiguous [R, L, D], one per (shift, scale).

    Quantised by rows where they are such.  ``bias`` [D] is added to the first branch.
    """
    rows, tokens, width = h.shape
    if width > MAX_WIDTH:
        raise ValueError(f"the fused norm holds a row of at most {MAX_WIDTH} channels, got {width}")
    if h.stride(-1) != 1:
        work = h.contiguous()
        run_adaln(work, residuals, modulations, outputs, eps, bias)
        if residuals:
            h.copy_(work)
        return
    for y, _ in residuals:
        if y.shape != h.shape:
            raise ValueError(f"the residual branch must have the shape {tuple(h.shape)} of the state, got {tuple(y.shape)}")
    if bias is not None and bias.shape != (width,):
        raise ValueError(f"the bias of a residual branch must have shape {(width,)}, got {tuple(bias.shape)}")
    (y, gate), (y2, gate2) = [(dense(y), _vector(gate, h)) for y, gate in residuals] + [(h, h)] * (2 - len(residuals))
    (shift, scale), (shift2, scale2) = [(_vector(a, h), _vector(b, h)) for a, b in modulations] + [(h, h)] * (2 - len(outputs))
    quantised = any(isinstance(output, Fp8Rows) for output in outputs)
    written = [output if isinstance(output, Fp8Rows) else (output, h) for output in (*outputs, h, h)[:2]]
    (n, row_scale), (n2, row_scale2) = written
    config = launch_config("adaln", row_class(rows * tokens, width), architecture(h.device))
    arguments = {
        "p_h": h,
        "p_y": y,
        "p_gate": gate,
        "p_bias": h if bias is None else bias.contiguous(),
        "p_y2": y2,
        "p_gate2": gate2,
        "p_shift": shift,
        "p_scale": scale,
        "p_shift2": shift2,
    }
    arguments |= {"p_scale2": scale2, "p_n": n, "p_n2": n2, "p_row_scale": row_scale, "p_row_scale2": row_scale2}
    arguments |= {"tokens": tokens, "h_row": h.stride(0), "h_token": h.stride(1), "y_row": y.stride(0), "y_token": y.stride(1)}
    arguments |= {"y2_row": y2.stride(0), "y2_token": y2.stride(1), "gate2_row": gate2.stride(0)}
    arguments |= {"gate_row": gate.stride(0), "shift_row": shift.stride(0), "scale_row": scale.stride(0)}
    arguments |= {"shift2_row": shift2.stride(0), "scale2_row": scale2.stride(0), "eps": eps, "D": width}
    arguments |= {"BLOCK_D": next_power_of_two(width), "TOKENS": config.rows, "RESIDUALS": len(residuals)}
    arguments |= {"BIAS": bias is not None, "OUTPUTS": len(outputs), "FP8_TOP": FP8_MAX if quantised else 0.0}
    launch(adaln_kernel, (-(-tokens // config.rows), rows), arguments, config.warps)


def _vector(x: Tensor, h: Tensor) -> Tensor:
    """A modulation vector [R, 1, D] (or [1, 1, D], repeated by stride) with contiguous channels."""
    rows, _, width = h.shape
    if x.shape not in ((rows, 1, width), (1, 1, width)):
        raise ValueError(f"a modulation vector must have shape {(rows, 1, width)}, got {tuple(x.shape)}")
    return dense(x).expand(rows, 1, width)


def _output(h: Tensor) -> Tensor:
    return torch.empty(h.shape, dtype=h.dtype, device=h.device)


def modulated_norm_triton(h: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """:func:`modulated_norm` as one kernel."""
    n = _output(h)
    run_adaln(h, (), ((shift, scale),), (n,), eps)
    return n


def gated_residual_triton(h: Tensor, y: Tensor, gate: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`gated_residual` as one kernel."""
    run_adaln(h, ((y, gate),), (), (), bias=bias)
    return h


def residual_modulated_norm_triton(
    h: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`residual_modulated_norm` as one kernel."""
    n = _output(h)
    run_adaln(h, ((y, gate),), ((shift, scale),), (n,), eps, bias=bias)
    return h, n


def residual_modulated_norm2_triton(
    h: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    shift2: Tensor,
    scale2: Tensor,
    eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`residual_modulated_norm2` as one kernel."""
    n, n2 = _output(h), _output(h)
    run_adaln(h, ((y, gate),), ((shift, scale), (shift2, scale2)), (n, n2), eps, bias=bias)
    return h, n, n2


def modulated_norm2_triton(
    h: Tensor, shift: Tensor, scale: Tensor, shift2: Tensor, scale2: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """:func:`modulated_norm2` as one kernel."""
    n, n2 = _output(h), _output(h)
    run_adaln(h, (), ((shift, scale), (shift2, scale2)), (n, n2), eps)
    return n, n2


def residual2_modulated_norm_triton(
    h: Tensor,
    y: Tensor,
    y2: Tensor,
    gate: Tensor,
    gate2: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`residual2_modulated_norm` as one kernel."""
    n = _output(h)
    run_adaln(h, ((y, gate), (y2, gate2)), ((shift, scale),), (n,), eps, bias=bias)
    return h, n


def bytes_moved(rows: int, tokens: int, width: int, itemsize: int, residuals: int, outputs: int, fp8: bool = False) -> int:
    """Least device-memory traffic: ``h`` in, with residuals each ``y`` in and ``h`` out, each output out, the vectors once."""
    state = rows * tokens * width
    written = outputs * (state + 4 * rows * tokens if fp8 else state * itemsize)
    vectors = rows * width * itemsize * (residuals + 2 * outputs)
    return state * itemsize * (2 + residuals if residuals else 1) + written + vectors


def flops(rows: int, tokens: int, width: int, residuals: int, outputs: int) -> int:
    """Each residual 2, mean 1, variance 3 and normalisation 1 when there is an output, modulation 2 for each, per element."""
    return rows * tokens * width * (2 * residuals + (5 if outputs else 0) + 2 * outputs)
