"""Modulated norms that are quantised by rows as they are written, for linear layers in fp8.

Each returns what its namesake in :mod:`.adaln` returns, with :class:`.fp8.Fp8Rows` in the place of every norm: values [R, L, D]
float8_e4m3fn, scale [R, L] fp32.  The norm is not rounded before it is quantised.
"""

from torch import Tensor

from .adaln import gated_residual, modulated_norm, run_adaln
from .fp8 import Fp8Rows, empty_rows, quantize_rows


def modulated_norm_fp8(h: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Fp8Rows:
    """:func:`.adaln.modulated_norm` in fp32, quantised by rows."""
    return quantize_rows(modulated_norm(h.float(), shift.float(), scale.float(), eps))


def modulated_norm2_fp8(
    h: Tensor, shift: Tensor, scale: Tensor, shift2: Tensor, scale2: Tensor, eps: float = 1e-6
) -> tuple[Fp8Rows, Fp8Rows]:
    """One norm with two modulations, each quantised by a scale of its own: :func:`modulated_norm_fp8` of both."""
    return modulated_norm_fp8(h, shift, scale, eps), modulated_norm_fp8(h, shift2, scale2, eps)


def residual_modulated_norm_fp8(
    h: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Fp8Rows]:
    """``h += gate * (y + bias)`` in place, then :func:`modulated_norm_fp8`; returns ``h`` and the rows."""
    gated_residual(h, y, gate, bias)
    return h, modulated_norm_fp8(h, shift, scale, eps)


def residual_modulated_norm2_fp8(
    h: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    shift2: Tensor,
    scale2: Tensor,
    eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Fp8Rows, Fp8Rows]:
    """``h += gate * (y + bias)`` in place, then :func:`modulated_norm2_fp8`; returns ``h`` and the rows of both."""
    gated_residual(h, y, gate, bias)
    return h, *modulated_norm2_fp8(h, shift, scale, shift2, scale2, eps)


def residual2_modulated_norm_fp8(
    h: Tensor,
    y: Tensor,
    y2: Tensor,
    gate: Tensor,
    gate2: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Fp8Rows]:
    """``h += gate * (y + bias) + gate2 * y2`` in place, then :func:`modulated_norm_fp8`; a kernel rounds ``h`` once."""
    gated_residual(h, y, gate, bias)
    return residual_modulated_norm_fp8(h, y2, gate2, shift, scale, eps)


def modulated_norm_fp8_triton(h: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Fp8Rows:
    """:func:`modulated_norm_fp8` as one kernel."""
    rows = empty_rows(h)
    run_adaln(h, (), ((shift, scale),), (rows,), eps)
    return rows


def modulated_norm2_fp8_triton(
    h: Tensor, shift: Tensor, scale: Tensor, shift2: Tensor, scale2: Tensor, eps: float = 1e-6
) -> tuple[Fp8Rows, Fp8Rows]:
    """:func:`modulated_norm2_fp8` as one kernel."""
    rows, rows2 = empty_rows(h), empty_rows(h)
    run_adaln(h, (), ((shift, scale), (shift2, scale2)), (rows, rows2), eps)
    return rows, rows2


def residual_modulated_norm_fp8_triton(
    h: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Fp8Rows]:
    """:func:`residual_modulated_norm_fp8` as one kernel."""
    rows = empty_rows(h)
    run_adaln(h, ((y, gate),), ((shift, scale),), (rows,), eps, bias)
    return h, rows


def residual_modulated_norm2_fp8_triton(
    h: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    shift2: Tensor,
    scale2: Tensor,
    eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Fp8Rows, Fp8Rows]:
    """:func:`residual_modulated_norm2_fp8` as one kernel."""
    rows, rows2 = empty_rows(h), empty_rows(h)
    run_adaln(h, ((y, gate),), ((shift, scale), (shift2, scale2)), (rows, rows2), eps, bias)
    return h, rows, rows2


def residual2_modulated_norm_fp8_triton(
    h: Tensor,
    y: Tensor,
    y2: Tensor,
    gate: Tensor,
    gate2: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    bias: Tensor | None = None,
) -> tuple[Tensor, Fp8Rows]:
    """:func:`residual2_modulated_norm_fp8` as one kernel."""
    rows = empty_rows(h)
    run_adaln(h, ((y, gate), (y2, gate2)), ((shift, scale),), (rows,), eps, bias)
    return h, rows
