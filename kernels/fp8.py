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
from .triton_runtime import architecture, await_previous, dense, jit, launch, next_power_of_two, tl

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest finite e4m3 number
SMALLEST_SCALE = 1e-12  # of a row's largest magnitude: a row of zeros stays zero
ALIGNMENT = 16  # the vendor's fp8 products need rows of a multiple of 16 bytes, inputs and outputs
MAX_WIDTH = 16384  # a row is held in registers
MAX_STREAMS = 3  # of one launch: what two attentions of a block leave for the image, and the first for the text


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


def quantize_streams(gelu: bool, *streams: Tensor) -> tuple[Fp8Rows, ...]:
    """:func:`quantize_rows` of up to ``MAX_STREAMS`` streams of one width, each [R, L, D] with R and L of its own."""
    return tuple(quantize_rows(stream, gelu) for stream in streams)


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


@jit()
def store_quantized_row(p_q, p_scale, b_x, index, o_d, m_d, D: tl.constexpr, FP8_TOP: tl.constexpr):
    """Write a row of fp32 numbers as row ``index`` (int64) of dense values [..., D] and scales [...]."""
    b_q, scale = quantized_row(b_x, FP8_TOP)
    tl.store(p_scale + index, scale)
    tl.store(p_q + index * D + o_d, b_q.to(p_q.dtype.element_ty), mask=m_d)


@jit(do_not_specialize=["count", "tokens"])
def quantize_block(
    p_x,
    p_q,
    p_scale,
    block,
    count,
    tokens,
    x_row,
    x_token,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
    GELU: tl.constexpr,
    FP8_TOP: tl.constexpr,
):
    """``TOKENS`` of the ``count`` = R L tokens of one stream, wherever its rows begin."""
    first = block * TOKENS
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    for i in range(tl.minimum(TOKENS, count - first)):
        index = first + i
        row = (index // tokens).to(tl.int64)
        b_x = tl.load(p_x + row * x_row + index % tokens * x_token + o_d, mask=m_d, other=0.0).to(tl.float32)
        if GELU:
            # x / 2 (1 + tanh(z)) = x / (1 + 2^(-2 z log2 e)) with z = sqrt(2 / pi) (x + 0.044715 x^3)
            b_x = b_x / (1.0 + tl.exp2(b_x * (-2.302208198144325 - 0.1029432395800235 * b_x * b_x)))
        store_quantized_row(p_q, p_scale, b_x, index.to(tl.int64), o_d, m_d, D, FP8_TOP)


@jit(do_not_specialize=["count", "tokens", "count2", "tokens2", "count3", "tokens3"])
def quantize_kernel(
    p_x,
    p_q,
    p_scale,
    p_x2,
    p_q2,
    p_scale2,
    p_x3,
    p_q3,
    p_scale3,
    count,
    tokens,
    x_row,
    x_token,
    count2,
    tokens2,
    x_row2,
    x_token2,
    count3,
    tokens3,
    x_row3,
    x_token3,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
    STREAMS: tl.constexpr,
    GELU: tl.constexpr,
    FP8_TOP: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Grid: blocks of the first stream's tokens, then of the others'.  A row is read once and written once."""
    await_previous(DEPENDENT)
    block = tl.program_id(0)
    blocks = tl.cdiv(count, TOKENS)
    both = blocks + tl.cdiv(count2, TOKENS)
    if block < blocks:
        quantize_block(p_x, p_q, p_scale, block, count, tokens, x_row, x_token, D, BLOCK_D, TOKENS, GELU, FP8_TOP)
    elif STREAMS > 1:
        if block < both:
            quantize_block(
                p_x2, p_q2, p_scale2, block - blocks, count2, tokens2, x_row2, x_token2,
                D, BLOCK_D, TOKENS, GELU, FP8_TOP,
            )  # fmt: skip
        elif STREAMS > 2:
            quantize_block(
                p_x3, p_q3, p_scale3, block - both, count3, tokens3, x_row3, x_token3,
                D, BLOCK_D, TOKENS, GELU, FP8_TOP,
            )  # fmt: skip


def empty_rows(x: Tensor) -> Fp8Rows:
    """Memory for the rows of ``x`` [R, L, D], dense."""
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    return Fp8Rows(torch.empty(x.shape, dtype=FP8, device=x.device), scale)


def quantize_rows_triton(x: Tensor, gelu: bool = False) -> Fp8Rows:
    """:func:`quantize_rows` as one kernel.  x [R, L, D] with D at most ``MAX_WIDTH``."""
    return quantize_streams_triton(gelu, x)[0]


def quantize_streams_triton(gelu: bool, *streams: Tensor) -> tuple[Fp8Rows, ...]:
    """:func:`quantize_streams` as one kernel.  D is at most ``MAX_WIDTH``."""
    widths = {x.shape[-1] for x in streams}
    if len(widths) != 1 or len(streams) > MAX_STREAMS:
        shapes = ", ".join(str(tuple(x.shape)) for x in streams)
        raise ValueError(f"one launch quantises up to {MAX_STREAMS} streams of one width, got {shapes or 'none'}")
    (width,) = widths
    if width > MAX_WIDTH:
        raise ValueError(f"the quantising kernel holds a row of at most {MAX_WIDTH} channels, got {width}")
    streams, made = tuple(map(dense, streams)), tuple(map(empty_rows, streams))
    counts = [x.shape[0] * x.shape[1] for x in streams]
    config = launch_config("quantise", row_class(sum(counts), width), architecture(streams[0].device))
    arguments: dict = {}
    for index, suffix in enumerate(("", "2", "3")):
        x, rows, count = (given[min(index, len(streams) - 1)] for given in (streams, made, counts))
        arguments |= {f"p_x{suffix}": x, f"p_q{suffix}": rows.values, f"p_scale{suffix}": rows.scale, f"count{suffix}": count}
        arguments |= {f"tokens{suffix}": x.shape[1], f"x_row{suffix}": x.stride(0), f"x_token{suffix}": x.stride(1)}
    arguments |= {"D": width, "BLOCK_D": next_power_of_two(width), "TOKENS": config.rows, "STREAMS": len(streams)}
    arguments |= {"GELU": gelu, "FP8_TOP": FP8_MAX}
    launch(quantize_kernel, (sum(-(-count // config.rows) for count in counts),), arguments, config.warps)
    return made


def bytes_moved(rows: int, tokens: int, width: int, itemsize: int) -> int:
    """Least traffic of quantising [R, L, D]: x in, one byte each and a scale per row out."""
    return rows * tokens * (width * (itemsize + 1) + 4)


def product_bytes_moved(rows: int, inputs: int, outputs: int) -> int:
    """Least traffic of a product over ``rows`` = R L tokens: values and weight in with their scales, 16-bit numbers out."""
    return rows * (inputs + 4) + outputs * (inputs + 4) + 2 * rows * outputs


def flops(rows: int, tokens: int, width: int, gelu: bool) -> int:
    """Magnitude, maximum, division and clamping, and 6 for the GELU, per element."""
    return rows * tokens * width * (4 + 6 * gelu)
