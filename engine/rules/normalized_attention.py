"""Normalized attention guidance (NAG) as part of a rule: its numbers, and where along a run it acts.

It is no term: it changes the attention of the conditional rows inside every block, by the formula of
:mod:`segue.kernels.normalized_attention`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.kernels.normalized_attention import NEUTRAL

from ..numeric_input import held_in_fp32, number_or_each, real_number
from .per_sample import Number, samples_of, shared
from .window import EVERYWHERE, Window, as_window

TAU, ALPHA = 2.5, 0.125  # of the authors' pipeline for SD3


@dataclass(frozen=True)
class NormalizedAttention:
    """Scale phi, bound tau and share alpha of NAG inside a window; each number is one, or one for each sample of a batch."""

    scale: Number
    tau: Number = TAU
    alpha: Number = ALPHA
    window: Window = EVERYWHERE

    name = "nag"

    def __post_init__(self):
        for name, high in (("scale", math.inf), ("tau", math.inf), ("alpha", 1.0)):
            low = 0.0 if name == "alpha" else 1.0

            def check(value: float, name: str = name, low: float = low, high: float = high) -> float:
                return _number(name, value, low, high)

            object.__setattr__(self, name, number_or_each(getattr(self, name), check))
        object.__setattr__(self, "window", as_window(self.window))
        samples_of(self)  # raises where the numbers are for different batches

    @property
    def acts(self) -> bool:
        """Whether it changes anything for any sample, at some level."""
        scale, alpha = (number if isinstance(number, tuple) else (number,) for number in (self.scale, self.alpha))
        return any(value != 1 for value in scale) and any(alpha) and not self.window.is_empty

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Scale, tau and alpha, which all samples share; those of no guidance where one of them turns it off."""
        scale, tau, alpha = map(shared, (self.scale, self.tau, self.alpha))
        return NEUTRAL if scale == 1 or alpha == 0 else (scale, tau, alpha)


def _number(name: str, value: float, low: float, high: float) -> float:
    value = real_number(value, f"{name} of NAG must be a number")
    if not (low <= value <= high and math.isfinite(value)):
        accepted = f"between {low:g} and {high:g}" if math.isfinite(high) else f"a finite number of at least {low:g}"
        raise ValueError(f"{name} of NAG must be {accepted}, got {value:g}")
    return held_in_fp32(value, f"{name} of NAG")


def attention_numbers(parts: Sequence[NormalizedAttention], step_sigmas: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Scale, tau and alpha of every step, [steps, 3], and what is odd about the windows.

    Raises ``ValueError`` where two parts of a rule act in one step.
    """
    numbers, taken, warnings = np.tile(NEUTRAL, (len(step_sigmas), 1)), np.zeros(len(step_sigmas), bool), []
    for part in parts:
        chosen = part.window.select(step_sigmas)
        if not chosen.any():
            warnings.append(f"the window {part.window} of NAG selects none of {len(step_sigmas)} steps")
        if part.window.kind == "steps" and part.window.high > len(step_sigmas):
            warnings.append(f"the window {part.window} of NAG reaches past the last step, {len(step_sigmas)}")
        if (both := int((chosen & taken).sum())) > 0:
            raise ValueError(f"two NAG of one rule act in the same {both} steps: give them windows that do not overlap")
        taken |= chosen
        numbers[chosen] = part.numbers
    return numbers, warnings
