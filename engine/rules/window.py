"""Where along a run a guidance term acts, resolved once against the real schedule."""

import math
from dataclasses import dataclass

import numpy as np

from ..numeric_input import real_number


@dataclass(frozen=True)
class Window:
    """A half-open range ``(low, high]`` of noise level, or of fractions of the run, or 1-based inclusive steps.

    Make one with :meth:`sigma`, :meth:`fraction` or :meth:`steps`; ``Window()`` is the whole run.
    """

    kind: str = "all"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        for name in ("low", "high"):
            number = real_number(getattr(self, name), "a window bound must be a finite number")
            if not math.isfinite(number):
                raise ValueError(f"a window bound must be a finite number, got {number}")
            object.__setattr__(self, name, number)
        if self.kind == "steps":
            if self.low != int(self.low) or self.high != int(self.high) or self.low < 1 or self.high < self.low:
                raise ValueError(f"steps of a window count from 1 with first <= last, got {self.low:g} to {self.high:g}")
        elif self.kind in ("all", "sigma", "fraction"):
            if not 0 <= self.low < self.high <= 1:
                raise ValueError(f"a {self.kind} window needs 0 <= low < high <= 1, got {self.low:g} to {self.high:g}")
        else:
            raise ValueError(f"unknown kind of window {self.kind!r}; known: all, sigma, fraction, steps")

    @classmethod
    def sigma(cls, low: float, high: float) -> "Window":
        """Steps that start at a noise level in ``(low, high]``."""
        return cls("sigma", low, high)

    @classmethod
    def fraction(cls, start: float, stop: float) -> "Window":
        """Steps ``i`` of ``n`` with ``start <= i / n < stop``; 0 is the first step."""
        return cls("fraction", start, stop)

    @classmethod
    def steps(cls, first: int, last: int) -> "Window":
        """Steps ``first`` to ``last``, counted from 1, both included, as on the SGG command line."""
        return cls("steps", first, last)

    def select(self, step_sigmas: np.ndarray) -> np.ndarray:
        """Which steps lie in the window, [n] bool, given the noise level at which each of n steps starts."""
        n = len(step_sigmas)
        if self.kind == "all":
            return np.ones(n, dtype=bool)
        if self.kind == "sigma":
            return (step_sigmas > self.low) & (step_sigmas <= self.high)
        if self.kind == "fraction":
            # compared as i < stop * n, rounded so that 0.7 of 10 steps is 7 steps
            index = np.arange(n)
            return (index >= round(self.low * n, 9)) & (index < round(self.high * n, 9))
        index = np.arange(1, n + 1)
        return (index >= self.low) & (index <= self.high)

    def __str__(self) -> str:
        if self.kind == "all":
            return "all steps"
        if self.kind == "steps":
            return f"steps {int(self.low)}-{int(self.high)}"
        if self.kind == "sigma":
            return f"sigma ({self.low:g}, {self.high:g}]"
        return f"fraction [{self.low:g}, {self.high:g})"


EVERYWHERE = Window()
