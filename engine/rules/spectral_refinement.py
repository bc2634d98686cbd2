"""Spectral refinement: the high frequencies of the guided clean estimate raised, where there is little noise left."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..argument_names import refuses_unknown
from .correction import REFINEMENT, CallLevels, Correction, set_numbers
from .guidance import Guidance, correcting
from .per_sample import Number, Numbers, as_kept, shared


@dataclass(frozen=True)
class SpectralRefinement(Correction):
    """Clean estimates with high radial frequencies raised by up to ``1 + beta`` at noise levels of at most ``high``."""

    beta: Number
    cutoff: Number
    high: Number

    name = "refine"
    place = REFINEMENT
    space = "x0"
    alone = True

    def __post_init__(self):
        set_numbers(self, beta=(-1.0, math.inf), cutoff=(0.0, 1.0), high=(0.0, 1.0))

    @classmethod
    def neutral(cls) -> Self:
        return cls(0.0, 0.5, 0.3)

    def idle(self, levels: CallLevels) -> str:
        if not shared(self.beta) or (levels.sigma <= shared(self.high)).any():
            return ""
        return f"no call has a noise level of at most {shared(self.high):g}"

    def numbers(self, levels: CallLevels) -> dict[str, np.ndarray]:
        acts = levels.sigma <= shared(self.high)
        return {"beta": np.where(acts, shared(self.beta), 0.0), "cutoff": np.full(len(acts), shared(self.cutoff))}


@refuses_unknown()
def SpectralRefine(beta: Numbers, cutoff: Numbers = 0.5, high: Numbers = 0.3) -> Guidance:
    """``x0 F^-1 (1 + beta smoothstep((r - cutoff) / (1 - cutoff))) F`` at noise levels of at most ``high``; 0 changes nothing.

    ``r`` is the radial frequency, 1 the Nyquist frequency of an axis: the mean and all below ``cutoff`` stay.  Enlarging by
    zeros and reducing again is the identity, so within the loop this gain is all that a linear pair of enhancement and
    degradation does: it raises what is there and invents nothing.  No trained enhancer is in the loop: whatever one makes is
    the estimate again once it is projected back and reduced, so it acts on finished pictures, as ``upscale`` of
    ``Engine.sample``.  A reconstruction after EFDiT (arXiv 2512.05152).
    """
    return correcting(SpectralRefinement(as_kept(beta), as_kept(cutoff), as_kept(high)))
