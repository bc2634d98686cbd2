"""Sums of products that do not lose with their length: in fp32, where no product of the hardware keeps more."""

from __future__ import annotations

from .triton_runtime import jit, tl


@jit()
def add_product(b_x, b_w, b_sum, b_lost):
    """``b_sum + b_x b_w`` and what that sum lost, from what it had lost before; both [M, N] fp32.

    A tensor core adds fp16 and bf16 products exactly enough for their precision.  In fp32 a running sum of K products would
    round K times; this one rounds as often as a block is long, as libraries do that split K (W. Kahan, 1965).
    """
    if b_w.dtype == tl.float32:
        b_part = tl.dot(b_x, b_w, input_precision="ieee") - b_lost
        b_new = b_sum + b_part
        b_lost = (b_new - b_sum) - b_part
        b_sum = b_new
    else:
        b_sum = tl.dot(b_x, b_w, b_sum, input_precision="ieee")
    return b_sum, b_lost
