"""What this machine can do at best, measured in the same run: a large copy and large matrix products."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .timing import Statistic, Timer, interleave

CUDA_COPY_BYTES, CPU_COPY_BYTES = 2**32, 2**28  # both far past the caches
CUDA_PRODUCT, CPU_PRODUCT = 8192, 1536


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy (read plus written) and FLOP per second of a square product, by dtype name."""

    copy: Statistic
    products: dict[str, Statistic]

    def rate(self, dtype: torch.dtype) -> float:
        """FLOP per second of the large product; raises ``ValueError`` for a dtype that was not measured."""
        if dtype_name(dtype) not in self.products:
            raise ValueError(f"no ceiling was measured for {dtype_name(dtype)}; measured: {', '.join(self.products)}")
        return self.products[dtype_name(dtype)].median

    def seconds(self, flops: float, moved: float, dtype: torch.dtype) -> float:
        """The roofline: no less than the arithmetic, no less than the traffic."""
        return max(flops / self.rate(dtype), moved / self.copy.median)


def measure_ceilings(
    device: torch.device,
    timer: Timer,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    repetitions: int = 7,
    copy_bytes: int | None = None,
    size: int | None = None,
    limit_s: float = 20.0,
) -> Ceilings:
    """Measure this device; random data, never zeros."""
    cuda = device.type == "cuda"
    copy_bytes = copy_bytes or (CUDA_COPY_BYTES if cuda else CPU_COPY_BYTES)
    size = size or (CUDA_PRODUCT if cuda else CPU_PRODUCT)
    source = torch.randint(0, 2**31, (copy_bytes // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    variants: dict[str, Callable[[], Tensor]] = {"copy": lambda: target.copy_(source)}
    for dtype in dtypes:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        variants[dtype_name(dtype)] = lambda a=left, b=right, o=out: torch.mm(a, b, out=o)
    seconds = interleave(variants, timer, repetitions, limit_s)
    moved = 2 * source.numel() * source.element_size()
    copy = Statistic.of(moved / seconds.pop("copy"))
    return Ceilings(copy, {name: Statistic.of(2 * size**3 / values) for name, values in seconds.items()})


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, ``bfloat16``, ..."""
    return str(dtype).removeprefix("torch.")
