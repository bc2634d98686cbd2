"""How long things take: interleaved repetitions, medians with a spread, timers that can be replaced.

A timer is any callable ``timer(function) -> seconds``.  Variants of one case are repeated in turn, so a drift of the machine
touches all of them alike, and ratios are formed inside a round.  Every round begins with another variant (A B C, B C A, ...),
so that none of them always comes first, or always after the same one.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Timer = Callable[[Callable[[], object]], float]
Key = TypeVar("Key")  # what names a variant

SPREAD = (20, 80)  # percentiles printed beside a median
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Statistic:
    """Median, 20th and 80th percentile of ``n`` repetitions."""

    median: float
    p20: float
    p80: float
    n: int

    @classmethod
    def of(cls, samples: np.ndarray) -> "Statistic":
        """The statistic of samples [n], n >= 1; raises ``ValueError`` for none or for a sample that is not finite."""
        samples = finite_samples(samples)
        low, high = np.percentile(samples, SPREAD)
        return cls(float(np.median(samples)), float(low), float(high), samples.size)

    def map(self, function: Callable[[float], float]) -> "Statistic":
        """The statistic of a monotonic function of the samples (exact at the percentiles up to interpolation)."""
        low, high = sorted((function(self.p20), function(self.p80)))
        return Statistic(function(self.median), low, high, self.n)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.p20:.4g} to {self.p80:.4g}, n = {self.n})"


def finite_samples(samples: np.ndarray) -> np.ndarray:
    """Samples [n], n >= 1, in fp64; raises ``ValueError`` for none or for a sample that is not finite."""
    samples = np.asarray(samples, dtype=np.float64)
    if not samples.size or not np.isfinite(samples).all():
        raise ValueError(f"a statistic needs finite samples, got {samples.tolist()}")
    return samples


def once(value: float) -> Statistic:
    """The statistic of something measured once, or counted."""
    return Statistic(value, value, value, 1)


def host_timer(function: Callable[[], object]) -> float:
    """Seconds by the monotonic clock, for work on the CPU."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cuda_timer(function: Callable[[], object]) -> float:
    """Seconds between two CUDA events around the work; waits for the device before and after."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    function()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3


def timer_for(device: torch.device) -> Timer:
    """The timer that fits a device."""
    return cuda_timer if device.type == "cuda" else host_timer


def interleave(
    variants: Mapping[Key, Callable[[], object]],
    timer: Timer,
    repetitions: int,
    limit_s: float = float("inf"),
    warm_up: int = 1,
) -> dict[Key, np.ndarray]:
    """Seconds [n] of every variant over n interleaved rounds; n is the same for all.

    ``limit_s`` bounds the timed work of the case, warm-up included: rounds stop when the next one would pass it, but at
    least ``MIN_ROUNDS`` are made (fewer only when ``repetitions`` asks for fewer).  Raises ``ValueError`` for an empty case.
    """
    if not variants:
        raise ValueError("a timing case needs at least one variant")
    if repetitions < 1:
        raise ValueError(f"repetitions must be at least 1, got {repetitions}")
    spent = sum(timer(function) for _ in range(warm_up) for function in variants.values())
    rounds: list[list[float]] = []
    while len(rounds) < repetitions:
        last = sum(rounds[-1]) if rounds else spent / max(warm_up, 1)
        if len(rounds) >= MIN_ROUNDS and spent + last > limit_s:
            break
        rounds.append(_round(list(variants.values()), timer, first=len(rounds) % len(variants)))
        spent += sum(rounds[-1])
    columns = np.array(rounds).T
    return dict(zip(variants, columns, strict=True))


def _round(functions: list[Callable[[], object]], timer: Timer, first: int) -> list[float]:
    """Seconds of every function, run in turn beginning with number ``first``."""
    seconds = [0.0] * len(functions)
    for index in (*range(first, len(functions)), *range(first)):
        seconds[index] = timer(functions[index])
    return seconds


def paired_ratio(numerator: np.ndarray, denominator: np.ndarray) -> Statistic:
    """Statistic of the ratios inside each round; [n] and [n] seconds from one call of :func:`interleave`."""
    return Statistic.of(np.asarray(numerator) / np.asarray(denominator))
