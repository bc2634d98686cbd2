"""Corrections of the whole guided prediction ``g``, whatever terms it is made of; ``c`` is the conditional prediction."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..argument_names import refuses_unknown
from .correction import HISTORY, WHOLE, CallLevels, Correction, set_numbers, within
from .guidance import Guidance, correcting
from .per_sample import Number, Numbers, as_kept, shared


@dataclass(frozen=True)
class RescaledDeviation(Correction):
    """The guided prediction at the standard deviation of the conditional one, by the share ``phi``; in the network's output."""

    phi: Number

    name = "rescale"
    place = WHOLE

    def __post_init__(self):
        set_numbers(self, phi=(0.0, 1.0))

    @classmethod
    def neutral(cls) -> Self:
        return cls(0.0)


@refuses_unknown()
def Rescale(phi: Numbers) -> Guidance:
    """``phi g std(c) / std(g) + (1 - phi) g``.  Source: arXiv 2305.08891, 3.4.

    Acts on the network's own output.  Added to a rule: ``CFG(7.0) + Rescale(0.7)``.
    """
    return correcting(RescaledDeviation(as_kept(phi)))


@dataclass(frozen=True)
class CappedNorm(Correction):
    """CFG-Renorm: the norm of the guided prediction at most ``rho`` times that of the conditional one."""

    rho: Number

    name = "renorm"
    place = WHOLE

    def __post_init__(self):
        set_numbers(self, rho=within("rho", 1.0, math.inf, finite=False))

    @classmethod
    def neutral(cls) -> Self:
        return cls(math.inf)


@refuses_unknown()
def Renorm(rho: Numbers = 1.0) -> Guidance:
    """``g min(1, rho |c| / |g|)`` on the network's own output; ``rho`` is at least 1, inf changes nothing.

    Source: CFG-Renorm of Lumina-Image 2.0 (arXiv 2503.21758).
    """
    return correcting(CappedNorm(as_kept(rho)))


@dataclass(frozen=True)
class PreservedEnergy(Correction):
    """EP-CFG: the guided prediction at the energy of the conditional one, by the share ``phi``."""

    phi: Number

    name = "energy"
    place = WHOLE

    def __post_init__(self):
        set_numbers(self, phi=(0.0, 1.0))

    @classmethod
    def neutral(cls) -> Self:
        return cls(0.0)


@refuses_unknown()
def EnergyPreserving(phi: Numbers = 1.0) -> Guidance:
    """``phi g |c| / |g| + (1 - phi) g`` on the network's own output; phi = 1 is published, 0 changes nothing.

    The published variant that leaves out the outer percentiles of the elements is not here.  Source: EP-CFG (arXiv 2412.09966).
    """
    return correcting(PreservedEnergy(as_kept(phi)))


@dataclass(frozen=True)
class HistoryGuidance(Correction):
    """HiGS: away from an average of the clean estimates of the calls before, in the high frequencies."""

    weight: Number
    alpha: Number
    low: Number
    high: Number
    eta: Number
    cutoff: Number

    name = "higs"
    place = HISTORY
    space = "x0"
    memory = "state"
    alone = True

    def __post_init__(self):
        unit = (0.0, 1.0)
        set_numbers(self, weight=(-math.inf, math.inf), alpha=unit, low=unit, high=unit, eta=(-math.inf, math.inf), cutoff=unit)
        for low, high in np.broadcast(self.low, self.high):
            if low >= high:
                raise ValueError(f"HiGS acts at noise levels in (low, high], and low {low:g} is not below high {high:g}")

    @classmethod
    def neutral(cls) -> Self:
        return cls(0.0, 0.75, 0.4, 0.95, 1.0, 0.05)

    def _chosen(self, levels: CallLevels) -> np.ndarray:
        return (levels.sigma > shared(self.low)) & (levels.sigma <= shared(self.high)) & (levels.step > 0)

    def idle(self, levels: CallLevels) -> str:
        if not shared(self.weight) or self._chosen(levels).any():
            return ""
        return f"no call after the first step has a noise level in ({shared(self.low):g}, {shared(self.high):g}]"

    def numbers(self, levels: CallLevels) -> dict[str, np.ndarray]:
        chosen = self._chosen(levels)
        constants = {name: np.full(len(chosen), shared(getattr(self, name))) for name in ("alpha", "eta", "cutoff")}
        rising = (levels.sigma - shared(self.low)).clip(0) / max(shared(self.high) - shared(self.low), 1e-12)
        first = (levels.step == 0).astype(np.float64)
        return {"weight": np.where(chosen, shared(self.weight) * np.sqrt(rising), 0.0), "first": first} | constants


@refuses_unknown()
def HiGS(
    weight: Numbers,
    alpha: Numbers = 0.75,
    low: Numbers = 0.4,
    high: Numbers = 0.95,
    eta: Numbers = 1.0,
    cutoff: float = 0.05,
) -> Guidance:
    """``x + weight r H(x - a)`` on the guided clean estimate ``x``, at noise levels in (low, high]; weight = 0 changes nothing.

    ``a``, of the calls before: ``a <- alpha x + (1 - alpha) a`` from 0 on.  Of the difference what is parallel to ``x`` is
    weighed by ``eta``, then ``H`` keeps the frequencies of a cosine transform above ``cutoff`` of the highest, smoothly.
    ``r = sqrt((sigma - low) / (high - low))``.  No further evaluation: it may stand alone.  *After* HiGS (arXiv 2509.22300),
    from what public implementations have of it; the paper was not read.
    """
    return correcting(HistoryGuidance(*map(as_kept, (weight, alpha, low, high, eta, cutoff))))
