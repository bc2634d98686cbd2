"""Low and high frequencies of a state: linear operators on each axis, as matrices, so that a captured step can hold them.

The matrices are kept for the life of the process, so they are made outside of inference mode: runs with gradients use them too.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 50.0  # of the smooth cut of a cosine transform, in shares of the highest frequency


@cache
@torch.inference_mode(False)
def pyramid_low(size: int, levels: int, device: torch.device) -> Tensor:
    """``[size, size]`` fp32: what a Laplacian pyramid of ``levels`` keeps in its lowest level, drawn up again, of one axis.

    A level blurs with the binomial filter of five taps, reflected at the edges, and halves by the means of neighbours; the way
    up doubles linearly and blurs.  Odd sizes are halved up.
    """
    line = torch.eye(size, dtype=torch.float64)[:, None]  # a batch of unit lines [size, 1, size]
    sizes = [size]
    for _ in range(levels - 1):
        sizes.append(max(1, -(-sizes[-1] // 2)))
        line = _resized(_blurred(line), sizes[-1])
    for larger in reversed(sizes[:-1]):
        line = _blurred(_resized(line, larger))
    return line[:, 0].T.to(device, torch.float32).contiguous()


def _blurred(lines: Tensor) -> Tensor:
    """Lines [N, 1, L] blurred; shorter than the filter is wide they are repeated at the edges."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=lines.dtype)[None, None] / 16
    mode = "reflect" if lines.shape[-1] > 2 else "replicate"
    return F.conv1d(F.pad(lines, (2, 2), mode=mode), taps)


def _resized(lines: Tensor, size: int) -> Tensor:
    return F.interpolate(lines, size=size, mode="linear", align_corners=False)


@cache
@torch.inference_mode(False)
def fourier_rows(size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The real Fourier basis of one axis: orthonormal rows [size, size], and each row's share of the Nyquist frequency."""
    x = torch.arange(size, dtype=torch.float64)
    rows, shares = [torch.full((size,), size**-0.5, dtype=torch.float64)], [0.0]
    for k in range(1, size // 2 + 1):
        angle = 2 * math.pi * k * x / size
        last = 2 * k == size
        waves = [angle.cos()] if last else [angle.cos(), angle.sin()]
        rows += [wave * ((1 if last else 2) / size) ** 0.5 for wave in waves]
        shares += [k / (size / 2)] * len(waves)
    return torch.stack(rows).to(device, dtype), torch.tensor(shares, dtype=dtype, device=device)


@cache
@torch.inference_mode(False)
def cosine_rows(size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cosine basis (DCT-II) of one axis: orthonormal rows [size, size], and their shares of the highest frequency."""
    x, k = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)[:, None]
    rows = (math.pi * (2 * x + 1) * k / (2 * size)).cos() * (2 / size) ** 0.5
    rows[0] *= 0.5**0.5
    return rows.to(device, dtype), (k[:, 0] / size).to(device, dtype)


def pyramid_part(x: Tensor, levels: int) -> Tensor:
    """The low frequencies of x [B, C, H, W] by a Laplacian pyramid."""
    rows, columns = (pyramid_low(size, levels, x.device).to(x.dtype) for size in x.shape[-2:])
    return rows @ x @ columns.mT


def fourier_part(x: Tensor, cutoff: Tensor) -> Tensor:
    """The frequencies of x [B, C, H, W] of at most ``cutoff`` [B] of the highest on both axes."""
    (rows, down), (columns, across) = (fourier_rows(size, x.device, x.dtype) for size in x.shape[-2:])
    kept = [(shares[None] <= cutoff[:, None]).to(x.dtype) for shares in (down, across)]
    return _masked(x, rows, columns, kept[0][:, :, None] * kept[1][:, None])


def cosine_high_part(x: Tensor, cutoff: Tensor) -> Tensor:
    """The frequencies of x [B, C, H, W] beyond ``cutoff`` [B] of the highest, by their distance from the mean, smoothly."""
    (rows, down), (columns, across) = (cosine_rows(size, x.device, x.dtype) for size in x.shape[-2:])
    distance = torch.hypot(down[:, None], across[None])
    return _masked(x, rows, columns, torch.sigmoid(SHARPNESS * (distance[None] - cutoff[:, None, None])))


def raised_part(x: Tensor, beta: Tensor, cutoff: Tensor) -> Tensor:
    """What ``x`` [B, C, H, W] gains by ``1 + beta smoothstep((r - cutoff) / (1 - cutoff))`` over radial frequency ``r``.

    beta, cutoff [B], cutoff in [0, 1]; ``r`` is 1 at the Nyquist frequency of an axis.  Nothing below ``cutoff``, so never of
    the mean; ``beta`` times all from the Nyquist frequency on; exactly zero where ``beta`` is.  Reconstruction after EFDiT
    (arXiv 2512.05152).
    """
    (rows, down), (columns, across) = (fourier_rows(size, x.device, x.dtype) for size in x.shape[-2:])
    beta, cutoff = (number.to(x.dtype)[:, None, None] for number in (beta, cutoff))
    above = torch.hypot(down[:, None], across[None]) - cutoff
    t = (above / (1 - cutoff).clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
    return _masked(x, rows, columns, beta * t * t * (3 - 2 * t))


def _masked(x: Tensor, rows: Tensor, columns: Tensor, mask: Tensor) -> Tensor:
    """x [B, C, H, W] in two orthonormal bases, times ``mask`` [B, H, W], and back."""
    return rows.mT @ (rows @ x @ columns.mT * mask[:, None]) @ columns
