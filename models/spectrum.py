"""Pictures in frequency: enlarged by zeros, reduced by leaving high frequencies out, and their power by radial frequency."""

import torch
from torch import Tensor


def enlarge(x: Tensor, height: int, width: int) -> Tensor:
    """``x`` [..., H, W] at a size no smaller, the new frequencies zero: trigonometric interpolation between pixel centres.

    Both pictures cover the same ground, so the samples of the larger lie between those of ``x``.  Computed in fp32, or fp64 if
    ``x`` is; returned in its dtype.  Odd and even sizes; the mean is preserved.
    """
    if height < x.shape[-2] or width < x.shape[-1]:
        raise ValueError(f"a picture of {x.shape[-2]} x {x.shape[-1]} is enlarged to no less, got {height} x {width}")
    return _resized(x, height, width)


def reduce(x: Tensor, height: int, width: int) -> Tensor:
    """``x`` [..., H, W] at a size no larger, without the frequencies beyond it; ``reduce(enlarge(x)) = x``.

    Dtypes as :func:`enlarge`; the mean is preserved.
    """
    if height > x.shape[-2] or width > x.shape[-1]:
        raise ValueError(f"a picture of {x.shape[-2]} x {x.shape[-1]} is reduced to no more, got {height} x {width}")
    return _resized(x, height, width)


def back_projected(y: Tensor, x: Tensor) -> Tensor:
    """``y`` [..., H, W] with its low frequencies replaced by those of the smaller ``x`` [..., h, w]: it reduces to ``x``."""
    return y + enlarge(x - reduce(y, *x.shape[-2:]), *y.shape[-2:])


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return _along(_along(wide, height, -2), width, -1).to(x.dtype)


def _along(x: Tensor, size: int, dim: int) -> Tensor:
    """``x`` resampled to ``size`` along one dimension; the Nyquist frequency of an even size stands for two, and is shared.

    Frequency k is turned by ``pi k (1 / size - 1 / own)``: from the first centre of one grid to that of the other.
    """
    own = x.shape[dim]
    if own == size:
        return x
    small = min(own, size)
    count = small // 2 + 1
    turn = torch.arange(count, dtype=torch.float64, device=x.device) * (torch.pi * (1 / size - 1 / own))
    factors = torch.polar(torch.ones_like(turn), turn)
    if small % 2 == 0:
        factors[-1] *= 0.5 if size > own else 2.0
    bins = torch.fft.rfft(x, dim=dim).narrow(dim, 0, count)
    bins = bins * factors.to(bins.dtype).view(-1, *[1] * (-dim - 1))
    return torch.fft.irfft(bins, n=size, dim=dim) * (size / own)


def radial_frequency(height: int, width: int) -> Tensor:
    """The distance from zero of every frequency of ``rfft2``, [H, W // 2 + 1] fp32; 1 is the Nyquist frequency of an axis."""
    return torch.hypot(torch.fft.fftfreq(height, 0.5)[:, None], torch.fft.rfftfreq(width, 0.5)[None])


def radial_spectrum(x: Tensor) -> Tensor:
    """The mean power of pictures [B, C, H, W] by radial frequency, [min(H, W) // 2 + 1] fp64: rings of one cycle a picture."""
    power = torch.fft.rfft2(x.double().cpu(), norm="ortho").abs().square().mean(dim=(0, 1))
    height, width = x.shape[-2:]
    rings = (radial_frequency(height, width) * (min(height, width) / 2)).round().long()
    count = min(height, width) // 2 + 1
    kept = rings < count
    twice = torch.full_like(power, 2.0)  # rfft2 holds one of each pair
    twice[:, 0] = 1.0
    if width % 2 == 0:
        twice[:, -1] = 1.0
    sums = torch.zeros(2, count, dtype=torch.float64)
    sums[0].index_add_(0, rings[kept], (power * twice)[kept])
    sums[1].index_add_(0, rings[kept], twice[kept])
    return sums[0] / sums[1]
