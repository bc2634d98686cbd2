"""Where along a run a guidance term acts, resolved once against the real schedule."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..numeric_input import number_from_text, real_number


@dataclass(frozen=True, repr=False)
class Window:
    """A half-open range ``(low, high]`` of noise level, or of fractions of the run, or 1-based inclusive steps.

    Make one with :meth:`sigma`, :meth:`fraction`, :meth:`steps` or, from text, :meth:`parse`; ``Window()`` is the whole run.
    A window from one end of the run may be empty, as ``fraction(0, 0)`` and ``sigma(1, 1)`` are.

    A window decides by the start of a step: where a step has two calls, as Heun's, both are in it or both are not.  A loop that
    is not ours says levels only, not steps: there each call is decided by its own level (:meth:`Engine.denoiser`).
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
            if not (0 <= self.low < self.high <= 1 or self.is_empty):
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

    @classmethod
    def parse(cls, text: str) -> "Window":
        """``sigma:LOW,HIGH``, ``fraction:START,STOP``, ``steps:FIRST,LAST`` or ``all``; a dash may stand for the comma."""
        if text == "all":
            return cls()
        kind, _, rest = text.partition(":")
        bounds = rest.split(",") if "," in rest else rest.split("-")
        if kind not in ("sigma", "fraction", "steps") or len(bounds) != 2:
            raise ValueError(f"expected a window such as sigma:0.2,0.8 or fraction:0,0.5 or steps:1,14, got {text!r}")
        return cls(kind, *map(number_from_text, bounds))

    @property
    def is_empty(self) -> bool:
        """Whether it holds no level, at one end of the run: 0 to 0, or 1 to 1, in sigma or fractions."""
        return self.kind in ("sigma", "fraction") and self.low == self.high and self.low in (0.0, 1.0)

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

    def __repr__(self) -> str:
        return "Window()" if self.kind == "all" else f"Window.{self.kind}({self.low:.12g}, {self.high:.12g})"

    def __str__(self) -> str:
        if self.kind == "all":
            return "all steps"
        if self.kind == "steps":
            return f"steps {int(self.low)}-{int(self.high)}"
        if self.kind == "sigma":
            return f"sigma ({self.low:g}, {self.high:g}]"
        return f"fraction [{self.low:g}, {self.high:g})"


EVERYWHERE = Window()


def as_window(window: Any) -> Window:
    """A window from one, from its text, or from None, which is the whole run.  Raises ``TypeError`` or ``ValueError``."""
    if window is None:
        return EVERYWHERE
    if isinstance(window, str):
        return Window.parse(window)
    if not isinstance(window, Window):
        raise TypeError(f"a window is made by Window.sigma, Window.fraction or Window.steps, got {window!r}")
    return window


def segments(switch: float | Window | str) -> tuple[Window, Window]:
    """The run before and after ``switch``: a noise level, or the first segment as a window in sigma or fractions; or text.

    As text: ``0.6``, ``fraction:0.5`` of the steps, or a window.  Raises ``TypeError`` or ``ValueError``.
    """
    if isinstance(switch, str):
        kind, _, bounds = switch.partition(":")
        if not bounds:
            return segments(number_from_text(switch))
        start = kind == "fraction" and "," not in bounds
        switch = Window.fraction(0.0, number_from_text(bounds)) if start else Window.parse(switch)
    if not isinstance(switch, Window):
        requirement = "the switch is a noise level between 0 and 1, or the first segment as a window"
        level = real_number(switch, requirement)
        if not 0 <= level <= 1:
            raise ValueError(f"{requirement}, got {level}")
        switch = Window.sigma(level, 1.0)
    if switch.kind == "sigma" and switch.high == 1:
        return switch, Window.sigma(0.0, switch.low)
    if switch.kind == "fraction" and switch.low == 0:
        return switch, Window.fraction(switch.high, 1.0)
    raise ValueError(
        f"the first segment begins with the run, as Window.sigma(level, 1) and Window.fraction(0, part) do, got {switch}"
    )
