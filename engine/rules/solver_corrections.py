"""Corrections that are a part of the solver's step: the guided velocity scaled, at no cost."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from ..argument_names import refuses_unknown
from .correction import STEP, CallLevels, Correction, set_numbers
from .guidance import Guidance, correcting
from .per_sample import Number, Numbers, as_kept, shared


@dataclass(frozen=True)
class VelocityScale(Correction):
    """The noise that a velocity means, scaled by ``factors`` of each noise level: ``r v + (r - 1) y / (1 - sigma)``."""

    place = STEP
    alone = True

    def numbers(self, levels: CallLevels) -> dict[str, np.ndarray]:
        return {}

    def factors(self, sigma: np.ndarray) -> np.ndarray:
        """``r`` at each level [N]; 1 at pure noise, where no clean part is known."""
        raise NotImplementedError


@dataclass(frozen=True)
class TerminalScale(VelocityScale):
    """TSR: samples drawn towards the modes of the data, or away from them, by the ratio ``k``; ``width`` is the data's."""

    k: Number
    width: Number

    name = "tsr"

    def __post_init__(self):
        set_numbers(self, k=(1e-3, 1e3), width=(1e-3, 1e3))

    @classmethod
    def neutral(cls) -> Self:
        return cls(1.0, 1.0)

    def factors(self, sigma: np.ndarray) -> np.ndarray:
        k, width = shared(self.k), shared(self.width)
        signal = ((1 - sigma) / np.maximum(sigma, 1e-12)) ** 2 * width**2  # of the ratio of signal to noise
        return np.where(sigma < 1, (signal + 1) / (signal / k + 1), 1.0)


@refuses_unknown()
def TSR(k: Numbers = 0.95, width: Numbers = 1.0) -> Guidance:
    """Noise times ``r = (n w^2 + 1) / (n w^2 / k + 1)``, ``n`` the ratio of signal to noise; k = 1 is off, less sharpens.

    ``w`` is ``width``.  Of the guided velocity, whatever the rule; it costs nothing.  Source: temporal score rescaling
    (arXiv 2510.01184).
    """
    return correcting(TerminalScale(as_kept(k), as_kept(width)))


@dataclass(frozen=True)
class NoiseScale(VelocityScale):
    """Epsilon scaling: the noise that a velocity means divided by ``factor``, against the bias that steps add up."""

    factor: Number

    name = "epsilon"

    def __post_init__(self):
        set_numbers(self, factor=(0.1, 10.0))

    @classmethod
    def neutral(cls) -> Self:
        return cls(1.0)

    def factors(self, sigma: np.ndarray) -> np.ndarray:
        return np.where(sigma < 1, 1 / shared(self.factor), 1.0)


@refuses_unknown()
def EpsilonScaling(factor: Numbers) -> Guidance:
    """Noise divided by ``factor``, slightly above 1; 1 changes nothing.  At pure noise, where nothing is known yet, not.

    Of the guided velocity, whatever the rule; it costs nothing.  Source: epsilon scaling (arXiv 2308.15321).
    """
    return correcting(NoiseScale(as_kept(factor)))


def scaled_rows(table: np.ndarray, sigmas: np.ndarray, silent: np.ndarray, corrections: tuple[Correction, ...]) -> np.ndarray:
    """Solver rows [N, 6] ``(a, b, c, d, e, f)`` of velocities at ``sigmas`` [N] that take each velocity scaled.

    But for those that are ``silent`` [N], which have none.
    """
    for correction in corrections:
        if isinstance(correction, VelocityScale):
            r = np.where(silent, 1.0, correction.factors(sigmas))
            q = np.where(sigmas < 1, (r - 1) / np.maximum(1 - sigmas, 1e-12), 0.0)
            a, b, c, d, e, f = table.T
            table = np.stack([a + b * q, b * r, c, d, e + f * q, f * r], axis=1)
    return table
