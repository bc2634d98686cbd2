"""Corrections of a guided prediction that need a reduction over each sample; formulas in :mod:`segue.kernels.corrections`.

A correction is a rule without terms, so it is added to one: ``CFG(7.0) + Rescale(0.7)``.  A rule holds at most one.  Each of
its numbers is one for all samples, or one for each sample of the batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..argument_names import refuses_unknown
from ..numeric_input import number_or_each, real_number, whole_number
from .guidance import Correction, Guidance
from .per_sample import Number, Numbers, as_kept, samples_of


def _number(name: str, value: float, low: float, high: float, finite: bool = True) -> float:
    value = real_number(value, f"{name} must be a number")
    if not low <= value <= high or (finite and not math.isfinite(value)):
        raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value}")
    return value


def _set(correction: Correction, **checks: Callable[[Any], float]) -> None:
    """Put what its check makes of each number in its place, or of each sample's; the counts of samples must agree."""
    for name, check in checks.items():
        object.__setattr__(correction, name, number_or_each(getattr(correction, name), check))
    samples_of(correction)


@dataclass(frozen=True)
class RescaledDeviation(Correction):
    """The guided prediction at the standard deviation of the conditional one, by the share ``phi``; in the network's output."""

    phi: Number

    name = "rescale"
    needs_reference = False

    def __post_init__(self):
        _set(self, phi=lambda phi: _number("phi", phi, 0.0, 1.0))


@dataclass(frozen=True)
class OptimizedScale(Correction):
    """CFG-Zero*: the reference scaled to fit the conditional velocity, and no velocity at all in the first ``zero_steps``."""

    zero_steps: int | tuple[int, ...] = 0

    name = "zero-star"

    def __post_init__(self):
        _set(self, zero_steps=self._count)

    @staticmethod
    def _count(steps: int) -> int:
        steps = whole_number(steps, "zero_steps must be a whole number")
        if steps < 0:
            raise ValueError(f"zero_steps must be at least 0, got {steps}")
        return steps


@dataclass(frozen=True)
class AdaptiveProjection(Correction):
    """APG: the correction ``c - u`` with momentum, its norm clipped, its part parallel to ``c`` scaled; on clean estimates."""

    momentum: Number
    radius: Number
    eta: Number

    name = "apg"
    has_memory = True

    def __post_init__(self):
        _set(
            self,
            momentum=lambda momentum: _number("momentum", momentum, -1.0, 1.0),
            radius=lambda radius: _number("radius", radius, 0.0, math.inf, finite=False),
            eta=lambda eta: _number("eta", eta, -math.inf, math.inf),
        )


@refuses_unknown()
def Rescale(phi: Numbers) -> Guidance:
    """Correction ``phi g std(c) / std(g) + (1 - phi) g`` of the guided prediction ``g``.  Source: arXiv 2305.08891, 3.4.

    Acts on the network's own output.  Added to a rule: ``CFG(7.0) + Rescale(0.7)``.
    """
    return Guidance(correction=RescaledDeviation(as_kept(phi)))


@refuses_unknown()
def CFGZeroStar(zero_steps: int | Sequence[int] = 0) -> Guidance:
    """Correction of the term with another condition: ``a u + s (c - a u)``, ``a = <c, u> / <u, u>`` per sample.

    In the first ``zero_steps`` the velocity is zero and nothing is evaluated.  For networks that predict velocities.
    Source: CFG-Zero* (arXiv 2503.18886).
    """
    return Guidance(correction=OptimizedScale(cast(int, as_kept(zero_steps))))


@refuses_unknown()
def APG(momentum: Numbers, radius: Numbers, eta: Numbers) -> Guidance:
    """Adaptive projected guidance, a correction of the term with another condition.  Source: arXiv 2410.02416.

    On clean estimates: ``D = c - u`` plus ``momentum`` times the D before, its norm clipped to ``radius`` (``inf``: not), its
    component parallel to ``c`` times ``eta``.
    """
    return Guidance(correction=AdaptiveProjection(as_kept(momentum), as_kept(radius), as_kept(eta)))
