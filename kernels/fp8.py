"""Row-wise quantisation to fp8 (e4m3): one fp32 scale per row, chosen so that the row's largest magnitude is representable."""

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest finite e4m3 number
SMALLEST_SCALE = 1e-12  # of a row's largest magnitude: a row of zeros stays zero


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x ~ q * scale``.  x [..., D] -> q [..., D] float8_e4m3fn, scale [...] fp32."""
    x = x.float()
    scale = x.abs().amax(-1).clamp_min(SMALLEST_SCALE) / FP8_MAX
    return (x / scale[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale
