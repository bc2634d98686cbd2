"""Corrections of classifier-free guidance: they change the direction ``D = c - u`` and how far it is followed.

``c`` and ``u`` are the predictions for the condition and of the reference, ``s`` the scale of the term, norms and products are
over each sample.  Every docstring gives the convention: what ``s`` multiplies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np

from ..argument_names import refuses_unknown
from ..numeric_input import whole_number
from .correction import FREQUENCIES, CallLevels, Correction, set_numbers, within
from .guidance import Guidance, correcting
from .per_sample import Number, Numbers, as_kept, shared

UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class OptimizedScale(Correction):
    """CFG-Zero*: the reference scaled to fit the conditional velocity, and no velocity at all in the first ``zero_steps``."""

    zero_steps: int | tuple[int, ...] = 0

    name = "zero-star"
    space = "velocity"

    def __post_init__(self):
        set_numbers(self, zero_steps=self._count)

    def never_silent(self) -> Self:
        return type(self)()

    @staticmethod
    def _count(steps: int) -> int:
        steps = whole_number(steps, "zero_steps must be a whole number")
        if steps < 0:
            raise ValueError(f"zero_steps must be at least 0, got {steps}")
        return steps


@refuses_unknown()
def CFGZeroStar(zero_steps: int | Sequence[int] = 0) -> Guidance:
    """``a u + s (c - a u)``, ``a = <c, u> / <u, u>``.

    In the first ``zero_steps`` the velocity is zero and nothing is evaluated.  For networks that predict velocities.
    Source: CFG-Zero* (arXiv 2503.18886).
    """
    return correcting(OptimizedScale(cast(int, as_kept(zero_steps))))


@dataclass(frozen=True)
class AdaptiveProjection(Correction):
    """APG: the direction with momentum, its norm clipped, its part parallel to ``c`` scaled; on clean estimates."""

    momentum: Number
    radius: Number
    eta: Number

    name = "apg"
    space = "x0"
    memory = "state"

    def __post_init__(self):
        set_numbers(self, momentum=(-1.0, 1.0), radius=within("radius", 0.0, math.inf, finite=False), eta=UNBOUNDED)

    @classmethod
    def neutral(cls) -> Self:
        return cls(0.0, math.inf, 1.0)


@refuses_unknown()
def APG(momentum: Numbers, radius: Numbers, eta: Numbers) -> Guidance:
    """``c + (s - 1) (D_orthogonal + eta D_parallel)`` on clean estimates.  Source: APG (arXiv 2410.02416), algorithm 1.

    ``D = c - u`` plus ``momentum`` times the D before, its norm clipped to ``radius`` (``inf``: not), split along ``c``.
    Other implementations write ``c + s (...)`` or ``u + s (...)``.
    """
    return correcting(AdaptiveProjection(as_kept(momentum), as_kept(radius), as_kept(eta)))


@dataclass(frozen=True)
class TangentialDamping(Correction):
    """TCFG: of the reference only the part along the direction that it shares with the conditional prediction."""

    name = "tcfg"


@refuses_unknown()
def TCFG() -> Guidance:
    """``u' + s (c - u')``, ``u' = <u, e> e`` with ``e`` the first right singular vector of [c; u].

    On the network's own output.  Source: TCFG (arXiv 2503.18137).
    """
    return correcting(TangentialDamping())


@dataclass(frozen=True)
class MagnitudeDamping(Correction):
    """MAMBO-G: less guidance where the direction is large beside the reference."""

    alpha: Number

    name = "mambo"

    def __post_init__(self):
        set_numbers(self, alpha=(0.0, math.inf))

    @classmethod
    def neutral(cls) -> Self:
        return cls(0.0)


@refuses_unknown()
def MAMBO(alpha: Numbers = 8.0) -> Guidance:
    """``c + (s - 1) exp(-alpha |D| / |u|) D``; alpha = 0 is plain guidance.

    On the network's own output, published for velocities.  Source: MAMBO-G (arXiv 2508.03442).
    """
    return correcting(MagnitudeDamping(as_kept(alpha)))


@dataclass(frozen=True)
class PowerLaw(Correction):
    """Guidance that grows or falls with a power of the direction's own norm."""

    alpha: Number

    name = "power-law"

    def __post_init__(self):
        set_numbers(self, alpha=UNBOUNDED)

    @classmethod
    def neutral(cls) -> Self:
        return cls(0.0)


@refuses_unknown()
def PowerLawCFG(alpha: Numbers = 0.9) -> Guidance:
    """``c + (s - 1) |D|^alpha D``; alpha = 0 is plain guidance.  The norm grows with the size of a sample: tune ``s`` anew.

    On the network's own output; the paper measures the norm of scores.  Source: arXiv 2502.07849.
    """
    return correcting(PowerLaw(as_kept(alpha)))


@dataclass(frozen=True)
class NormalizedBeta(Correction):
    """beta-CFG: the scale divided by a power of the direction's norm, and along the steps by a beta density."""

    a: Number
    b: Number
    gamma: Number

    name = "beta"

    def __post_init__(self):
        set_numbers(self, a=(1.0, MOST_PEAKED), b=(1.0, MOST_PEAKED), gamma=UNBOUNDED)

    @classmethod
    def neutral(cls) -> Self:
        return cls(1.0, 1.0, 0.0)

    @property
    def needs_schedule(self) -> bool:
        return True

    def numbers(self, levels: CallLevels) -> dict[str, np.ndarray]:
        a, b, p = shared(self.a), shared(self.b), levels.position
        # by logarithms: of large a and b neither the powers nor the norm are numbers that fp64 holds
        norm = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
        density = np.exp(_logarithm_of_power(p, a - 1) + _logarithm_of_power(1 - p, b - 1) - norm)
        return {"density": density, "gamma": np.full(len(p), shared(self.gamma))}


MOST_PEAKED = 1e6  # of a and b: a peak as high as 1000


def _logarithm_of_power(base: np.ndarray, exponent: float) -> np.ndarray:
    """That of ``base ** exponent``, for bases from 0 to 1."""
    with np.errstate(divide="ignore"):
        return exponent * np.log(base) if exponent else np.zeros_like(base)


@refuses_unknown()
def BetaCFG(a: Numbers = 2.0, b: Numbers = 2.0, gamma: Numbers = 1.0) -> Guidance:
    """``u + s beta(p; a, b) D / |D|^gamma`` with ``p`` from 0 to 1 over the steps; a = b = 1, gamma = 0 is plain guidance.

    On the network's own output.  The norm grows with the size of a sample: tune ``s`` anew.  With a and b above 1 the first
    and the last step follow the reference alone, as published.  Source: beta-CFG (arXiv 2502.10574).
    """
    return correcting(NormalizedBeta(as_kept(a), as_kept(b), as_kept(gamma)))


@dataclass(frozen=True)
class AngleDomain(Correction):
    """ADG: the clean estimate turns away from the reference's, and keeps about its length."""

    max_angle: Number

    name = "adg"
    space = "x0"

    def __post_init__(self):
        set_numbers(self, max_angle=(0.0, math.pi))


@refuses_unknown()
def ADG(max_angle: Numbers = math.pi / 3) -> Guidance:
    """``cos(b) c + sin(b) / sin(a) e`` on clean estimates: ``a`` between u and c, ``b = min((s - 1) a, max_angle)`` radians.

    ``e`` is the part of ``c`` that is orthogonal to ``u``.  Source: Angle Domain Guidance (arXiv 2506.11039).
    """
    return correcting(AngleDomain(as_kept(max_angle)))


@dataclass(frozen=True)
class Perpendicular(Correction):
    """Perp-Neg: of what the other terms add only the part that is perpendicular to ``D``."""

    name = "perp-neg"


@refuses_unknown()
def PerpNeg() -> Guidance:
    """``c + (s - 1) D + E - (<E, D> / <D, D>) D`` with ``E`` the sum of the terms beside that of ``uncond``.

    ``CFG(s) + CFG(1 + w, condition=n) + PerpNeg()`` is ``u + s (D - v perp(n - u))`` with ``w = s v``: away from the label
    ``n``, but not from what it shares with the condition.  Where the term of ``uncond`` weighs nothing there is no ``D`` to be
    perpendicular to, and the other terms are added whole.  On the network's own output: of ``D`` as that gives it, not as other
    corrections change it.  SD3 has one negative prompt, which is ``uncond``: the published use is for labels.  Source: Perp-Neg
    (arXiv 2304.04968).
    """
    return correcting(Perpendicular())


@dataclass(frozen=True)
class FrequencyDecoupled(Correction):
    """FDG: the low frequencies of the direction weighed apart from the high ones."""

    low: Number
    levels: int = 2

    name = "fdg"
    place = FREQUENCIES

    def __post_init__(self):
        set_numbers(self, low=UNBOUNDED)
        count = whole_number(self.levels, "levels must be a whole number")
        if not 2 <= count <= 8:
            raise ValueError(f"levels must lie between 2 and 8, got {count}")

    @property
    def constants(self) -> dict[str, Any]:
        return {"levels": self.levels}

    @classmethod
    def neutral(cls) -> Self:
        return cls(1.0)


@refuses_unknown()
def FDG(low: Numbers, levels: int = 2) -> Guidance:
    """``c + (s - 1) (D_high + low D_low)``, D cut in two by a Laplacian pyramid; low = 1 is plain guidance.

    The published scales ``w_high, w_low`` are ``CFG(w_high) + FDG((w_low - 1) / (w_high - 1))``.  Of the pyramid's ``levels``
    the lowest is the low part.  On the network's own output.  Source: FDG (arXiv 2506.19713), two scales.
    """
    return correcting(FrequencyDecoupled(as_kept(low), levels))


@dataclass(frozen=True)
class FrequencyScaled(Correction):
    """FreSca: low and high frequencies of the direction, cut in the Fourier domain, each scaled."""

    low: Number
    high: Number
    cutoff: Number

    name = "fresca"
    place = FREQUENCIES

    def __post_init__(self):
        set_numbers(self, low=UNBOUNDED, high=UNBOUNDED, cutoff=(0.0, 1.0))

    @classmethod
    def neutral(cls) -> Self:
        return cls(1.0, 1.0, 0.5)


@refuses_unknown()
def FreSca(low: Numbers = 1.0, high: Numbers = 1.25, cutoff: float = 0.3) -> Guidance:
    """``c + (s - 1) (low D_low + high D_high)``; low = high = 1 is plain guidance.

    ``cutoff``: the share of the frequencies of each axis that are low, a square around the mean.  On the network's own output.
    Source: FreSca (arXiv 2504.02154).
    """
    return correcting(FrequencyScaled(as_kept(low), as_kept(high), as_kept(cutoff)))


@dataclass(frozen=True)
class Feedback(Correction):
    """FBG: a scale per sample and call from a running estimate of how well the sample fits its condition."""

    pi: Number
    start: Number
    peak: Number
    most: Number

    name = "fbg"
    space = "x0"
    memory = "number"
    falling = True

    def __post_init__(self):
        set_numbers(self, pi=(0.0, 1.0), start=(0.0, 1.0), peak=(0.0, 1.0), most=(1.0, 1e6))
        for name, low in (("pi", 0.5), ("start", 0.0)):
            for value in np.atleast_1d(getattr(self, name)):
                if not low <= value < 1:
                    raise ValueError(f"{name} must lie between {low:g} and 1, below 1, got {value}")
        for value in np.atleast_1d(self.most):
            if value <= 1:
                raise ValueError(f"most must be above 1, got {value}")

    def numbers(self, levels: CallLevels) -> dict[str, np.ndarray]:
        pi, start, peak, most = map(shared, (self.pi, self.start, self.peak, self.most))
        sigma, after = levels.sigma, levels.next_sigma
        # in the variance-exploding levels t = sigma / (1 - sigma): q = t' / t, and the variance of a step back from t to t'
        q = after * (1 - sigma) / (sigma * np.maximum(1 - after, 1e-12))
        later = after / np.maximum(1 - after, 1e-12)
        variance = (1 - q**2) * later**2
        offset = math.log((1 - pi) * REFERENCE_SCALE / (REFERENCE_SCALE - 1)) / ((1 - start) * levels.steps)
        begins = np.diff(levels.step, prepend=-1) > 0  # the first call of each step: later ones explain nothing anew
        moment = np.interp((1 - peak) * levels.steps - 1, np.arange(levels.steps), variance[begins])
        temperature = abs(2 * moment * offset / 10)
        pull = np.where(begins & (variance > 0), temperature / np.maximum(2 * variance, 1e-30), 0.0)
        constant = {"floor": 1 - pi, "least": math.log((1 - pi) * most / (most - 1))}
        found = {name: np.full(len(sigma), value) for name, value in constant.items()}
        return found | {"q": q, "later": later, "pull": pull, "offset": np.where(begins, offset, 0.0), "sigma": sigma}


REFERENCE_SCALE = 3.0  # the scale that guidance has reached at ``start``, in the published parameters


@refuses_unknown()
def FBG(pi: Numbers = 0.95, start: Numbers = 0.5, peak: Numbers = 0.4, most: Numbers = 10.0) -> Guidance:
    """``u + l (c - u)``, ``l = p / (p - (1 - pi))`` with p the running posterior of a sample, instead of the term's scale.

    But for 1, which turns the term off, and with it all that corrects it.  ``log p`` starts at 0 and falls or rises by how much
    better ``c`` explains the step just made than ``u`` does; it is kept so that ``l`` is at most ``most``.  ``start`` and
    ``peak`` are the shares of the run that is left, 1 at its beginning, at which guidance sets in and is strongest.  *After*
    FBG (arXiv 2506.06085): the step that is explained is Euler's of the call's own levels, whatever the solver; of a step's
    calls the first one's.  Published for variance-exploding chains, to which levels are converted.  Not for levels that rise.
    """
    return correcting(Feedback(as_kept(pi), as_kept(start), as_kept(peak), as_kept(most)))
