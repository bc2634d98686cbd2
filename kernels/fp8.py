"""Row-wise fp8 (e4m3): one fp32 scale per row, chosen so that the row's largest magnitude is representable.

A linear layer in fp8 multiplies rows of activations (a scale per token) by rows of its weight (a scale per output channel).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .launch_lookup import launch_config
from .shape_class import row_class
from .triton_runtime import architecture, dense, jit, launch, next_power_of_two, tl

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest finite e4m3 number
SMALLEST_SCALE = 1e-12  # of a row's largest magnitude: a row of zeros stays zero
ALIGNMENT = 16  # the vendor's fp8 products need rows of a multiple of 16 bytes, inputs and outputs
MAX_WIDTH = 16384  # a row is held in registers


class Fp8Rows(NamedTuple):
    """``values * scale``: values [..., D] float8_e4m3fn, scale [...] fp32."""

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        """That of the values."""
        return self.values.shape


def quantize_rows(x: Tensor, gelu: bool = False) -> Fp8Rows:
    """``x ~ values * scale``, or ``gelu(x)`` with the tanh approximation.  x [..., D]; computed in fp32, rounded to nearest."""
    x = x.float()
    if gelu:
        x = F.gelu(x, approximate="tanh")
    scale = x.abs().amax(-1).clamp_min(SMALLEST_SCALE) / FP8_MAX
    return Fp8Rows((x / scale[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale)


def fp8_linear(values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """``x W^T + b`` of quantised operands, [..., E] in the dtype of ``bias``; sums and scales in fp32, rounded once.

    values [..., D] and weight [E, D] float8_e4m3fn; scale [...] and weight_scale [E] fp32; bias [E].
    """
    dtype = torch.promote_types(bias.dtype, torch.float32)
    product = F.linear(values.to(dtype), weight.to(dtype))
    return (product * scale[..., None] * weight_scale + bias).to(bias.dtype)


def fp8_linear_scaled_mm(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, fast_accumulation: bool = False
) -> Tensor:
    """:func:`fp8_linear` by the vendor's library: cuBLASLt or CUTLASS, as PyTorch chooses.

    ``fast_accumulation``: Hopper's tensor cores sum fp8 products with 14 bits; without it partial sums are promoted to fp32.
    The error of the fast sums grows with D.
    """
    product = torch._scaled_mm(
        values.flatten(0, -2),
        weight.t(),
        scale_a=scale.reshape(-1, 1),
        scale_b=weight_scale[None],
        bias=bias,
        out_dtype=bias.dtype,
        use_fast_accum=fast_accumulation,
    )
    return product.unflatten(0, values.shape[:-1])


@jit()
def quantized_row(b_x, FP8_TOP: tl.constexpr):
    """One row of fp32 numbers to (values within the range of fp8, scale); a NaN anywhere makes the scale NaN.

    Magnitudes are compared as integers, whose order is that of the floats and puts NaN above infinity: a float maximum would
    drop it.
    """
    largest = tl.max(tl.abs(b_x).to(tl.int32, bitcast=True), 0).to(tl.float32, bitcast=True)
    scale = tl.maximum(largest, 1e-12, propagate_nan=tl.PropagateNan.ALL) / FP8_TOP
    return tl.clamp(b_x / scale, -FP8_TOP, FP8_TOP, propagate_nan=tl.PropagateNan.ALL), scale


@jit(do_not_specialize=["tokens"])
def quantize_kernel(
    p_x,
    p_q,
    p_scale,
    tokens,
    x_row,
    x_token,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
    GELU: tl.constexpr,
    FP8_TOP: tl.constexpr,
):
    """Grid (token blocks, R).  A row is read once and written once."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * TOKENS
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    for token in range(first, tl.minimum(first + TOKENS, tokens)):
        b_x = tl.load(p_x + row * x_row + token * x_token + o_d, mask=m_d, other=0.0).to(tl.float32)
        if GELU:
            # x / 2 (1 + tanh(z)) = x / (1 + 2^(-2 z log2 e)) with z = sqrt(2 / pi) (x + 0.044715 x^3)
            b_x = b_x / (1.0 + tl.exp2(b_x * (-2.302208198144325 - 0.1029432395800235 * b_x * b_x)))
        b_q, scale = quantized_row(b_x, FP8_TOP)
        tl.store(p_scale + row * tokens + token, scale)
        tl.store(p_q + (row * tokens + token) * D + o_d, b_q.to(p_q.dtype.element_ty), mask=m_d)


def quantize_rows_triton(x: Tensor, gelu: bool = False) -> Fp8Rows:
    """:func:`quantize_rows` as one kernel.  x [R, L, D] with D at most ``MAX_WIDTH``."""
    rows, tokens, width = x.shape
    if width > MAX_WIDTH:
        raise ValueError(f"the quantising kernel holds a row of at most {MAX_WIDTH} channels, got {width}")
    x = dense(x)
    values = torch.empty(x.shape, dtype=FP8, device=x.device)
    scale = torch.empty(rows, tokens, dtype=torch.float32, device=x.device)
    config = launch_config("quantise", row_class(rows * tokens, width), architecture(x.device))
    arguments = {"p_x": x, "p_q": values, "p_scale": scale, "tokens": tokens, "x_row": x.stride(0), "x_token": x.stride(1)}
    arguments |= {"D": width, "BLOCK_D": next_power_of_two(width), "TOKENS": config.rows, "GELU": gelu, "FP8_TOP": FP8_MAX}
    launch(quantize_kernel, (-(-tokens // config.rows), rows), arguments, config.warps)
    return Fp8Rows(values, scale)


def bytes_moved(rows: int, tokens: int, width: int, itemsize: int) -> int:
    """Least traffic of quantising [R, L, D]: x in, one byte each and a scale per row out."""
    return rows * tokens * (width * (itemsize + 1) + 4)


def product_bytes_moved(rows: int, inputs: int, outputs: int) -> int:
    """Least traffic of a product over ``rows`` = R L tokens: values and weight in with their scales, 16-bit numbers out."""
    return rows * (inputs + 4) + outputs * (inputs + 4) + 2 * rows * outputs


def flops(rows: int, tokens: int, width: int, gelu: bool) -> int:
    """Magnitude, maximum, division and clamping, and 6 for the GELU, per element."""
    return rows * tokens * width * (4 + 6 * gelu)
