"""Whether rows in fp8 are those of numbers in fp64, each rounded by the scale of its row."""

import torch
from torch import Tensor

from segue.kernels.contracts import FP8_STEP
from segue.kernels.fp8 import FP8, FP8_MAX, SMALLEST_SCALE, Fp8Rows
from segue.kernels.triton_runtime import interpreting


def check_rows(rows: Fp8Rows, truth: Tensor) -> Tensor:
    """Scales to fp32 rounding; values equal, or one e4m3 step apart where a value sits on a rounding boundary.

    ``truth`` [..., D] in fp64.  Returns what the values should be, [..., D] in fp64.
    """
    values, scale = rows
    expected = truth.abs().amax(-1).clamp_min(SMALLEST_SCALE) / FP8_MAX
    assert (values.dtype, scale.dtype) == (FP8, torch.float32)
    assert values.shape == truth.shape and scale.shape == expected.shape
    # numbers before they are quantised are a few roundings of fp32 off, relative to the largest of a row
    assert torch.allclose(scale.double(), expected, rtol=1e-5)
    scaled = truth / expected[..., None]
    right = (values.double() - scaled).abs() <= FP8_STEP * scaled.abs().clamp_min(2**-6)
    if interpreting():
        # the interpreter truncates subnormals, and drops the carry of a mantissa that rounds up to a power of two
        right |= (torch.frexp(scaled.abs())[0] >= 1 - 2**-5) | (scaled.abs() <= 2**-6)
    assert right.all() and values.float().isfinite().all()
    return scaled


def same_bits(one: Fp8Rows, other: Fp8Rows) -> bool:
    """Whether values and scales agree to the bit."""
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(one, other, strict=True))
