"""What this machine can do at best, measured in the same run: a large copy and large matrix products."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from .timing import Statistic, Timer, interleave

CUDA_COPY_BYTES, CPU_COPY_BYTES = 2**32, 2**28  # both far past the caches
CUDA_PRODUCT, CPU_PRODUCT = 8192, 3072  # smaller ones drift by a quarter from run to run
EMULATED_PRODUCT = 768  # 16 bits on the CPU: hundreds of times slower where it has no instruction for them


class Work(NamedTuple):
    """Something to time, and how many bytes or FLOP it is."""

    amount: int
    run: Callable[[], object]


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

    def including(self, device: torch.device, timer: Timer, dtypes: Iterable[torch.dtype]) -> "Ceilings":
        """These, and the product of every other dtype of ``dtypes``, measured now."""
        missing = [dtype for dtype in dict.fromkeys(dtypes) if dtype_name(dtype) not in self.products]
        return replace(self, products=self.products | _rates(_products(device, missing), timer)) if missing else self


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
    copy_bytes = copy_bytes or (CUDA_COPY_BYTES if device.type == "cuda" else CPU_COPY_BYTES)
    source = torch.randint(0, 2**31, (copy_bytes // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    copy = {"copy": Work(2 * source.numel() * source.element_size(), lambda: target.copy_(source))}
    rates = _rates(copy | _products(device, dtypes, size), timer, repetitions, limit_s)
    return Ceilings(rates.pop("copy"), rates)


def _products(device: torch.device, dtypes: Iterable[torch.dtype], size: int | None = None) -> dict[str, Work]:
    """A square product for every dtype, by name."""
    on_cpu = {torch.float32: CPU_PRODUCT}
    work = {}
    for dtype in dtypes:
        side = size or (CUDA_PRODUCT if device.type == "cuda" else on_cpu.get(dtype, EMULATED_PRODUCT))
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        work[dtype_name(dtype)] = Work(2 * side**3, partial(torch.mm, left, right, out=out))
    return work


def _rates(work: dict[str, Work], timer: Timer, repetitions: int = 7, limit_s: float = 20.0) -> dict[str, Statistic]:
    """Amount per second of every piece of work, in interleaved rounds."""
    seconds = interleave({name: each.run for name, each in work.items()}, timer, repetitions, limit_s)
    return {name: Statistic.of(work[name].amount / values) for name, values in seconds.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, ``bfloat16``, ..."""
    return str(dtype).removeprefix("torch.")
