"""Corrections of a guided prediction that need a reduction over each sample; formulas in :mod:`segue.kernels.corrections`.

A correction is a rule without terms, so it is added to one: ``CFG(7.0) + Rescale(0.7)``.  A rule holds at most one.
"""

import math
from dataclasses import dataclass

from ..numeric_input import real_number, whole_number
from .guidance import Correction, Guidance


def _number(name: str, value: float, low: float, high: float, finite: bool = True) -> float:
    value = real_number(value, f"{name} must be a number")
    if not low <= value <= high or (finite and not math.isfinite(value)):
        raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value}")
    return value


@dataclass(frozen=True)
class RescaledDeviation(Correction):
    """The guided prediction at the standard deviation of the conditional one, by the share ``phi``; in the network's output."""

    phi: float

    name = "rescale"
    needs_reference = False

    def __post_init__(self):
        object.__setattr__(self, "phi", _number("phi", self.phi, 0.0, 1.0))


@dataclass(frozen=True)
class OptimizedScale(Correction):
    """CFG-Zero*: the reference scaled to fit the conditional velocity, and no velocity at all in the first ``zero_steps``."""

    zero_steps: int = 0

    name = "zero-star"

    def __post_init__(self):
        object.__setattr__(self, "zero_steps", whole_number(self.zero_steps, "zero_steps must be a whole number"))
        if self.zero_steps < 0:
            raise ValueError(f"zero_steps must be at least 0, got {self.zero_steps}")


@dataclass(frozen=True)
class AdaptiveProjection(Correction):
    """APG: the correction ``c - u`` with momentum, its norm clipped, its part parallel to ``c`` scaled; on clean estimates."""

    momentum: float
    radius: float
    eta: float

    name = "apg"
    has_memory = True

    def __post_init__(self):
        object.__setattr__(self, "momentum", _number("momentum", self.momentum, -1.0, 1.0))
        object.__setattr__(self, "radius", _number("radius", self.radius, 0.0, math.inf, finite=False))
        object.__setattr__(self, "eta", _number("eta", self.eta, -math.inf, math.inf))


def Rescale(phi: float) -> Guidance:
    """Correction ``phi g std(c) / std(g) + (1 - phi) g`` of the guided prediction ``g``.  Source: arXiv 2305.08891, 3.4.

    Acts on the network's own output.  Added to a rule: ``CFG(7.0) + Rescale(0.7)``.
    """
    return Guidance(correction=RescaledDeviation(phi))


def CFGZeroStar(zero_steps: int = 0) -> Guidance:
    """Correction of the term with another condition: ``a u + s (c - a u)``, ``a = <c, u> / <u, u>`` per sample.

    In the first ``zero_steps`` the velocity is zero and nothing is evaluated.  For networks that predict velocities.
    Source: CFG-Zero* (arXiv 2503.18886).
    """
    return Guidance(correction=OptimizedScale(zero_steps))


def APG(momentum: float, radius: float, eta: float) -> Guidance:
    """Adaptive projected guidance, a correction of the term with another condition.  Source: arXiv 2410.02416.

    On clean estimates: ``D = c - u`` plus ``momentum`` times the D before, its norm clipped to ``radius`` (``inf``: not), its
    component parallel to ``c`` times ``eta``.
    """
    return Guidance(correction=AdaptiveProjection(momentum, radius, eta))
