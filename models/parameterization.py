"""Every network seen in flow coordinates: ``y = (1 - sigma) x0 + sigma eps`` and velocity ``v = eps - x0``.

A variance-preserving state ``x = alpha x0 + s eps`` is ``y`` times ``alpha + s`` at ``sigma = s / (alpha + s)``.  So one set of
solvers, one noise level and one meaning of a window serve every model; in these coordinates DDIM is Euler's method.  The
cosine path is such a state too: ``alpha = cos(pi t / 2)``, ``s = sin(pi t / 2)``, ``t = (2 / pi) atan(sigma / (1 - sigma))``.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from .spec import ModelSpec


class Parameterization:
    """Conversions between flow coordinates and the conventions of one model; fp64 on the host.

    With network output ``o``: ``v = m y + n o``; the network's input is ``input_scale * y``.
    """

    TRAIN_STEPS = 1000
    BETA_START, BETA_END = 1e-4, 2e-2  # DiT's linear schedule

    def __init__(self, spec: ModelSpec):
        self.prediction, self.time, self.path = spec.prediction, spec.time, spec.path
        if (spec.prediction == "epsilon") != (spec.time == "discrete"):
            raise ValueError(f"prediction {spec.prediction!r} and time input {spec.time!r} do not go together")

    @cached_property
    def chain(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """alpha, s and flow sigma of every index of the discrete chain."""
        betas = np.linspace(self.BETA_START, self.BETA_END, self.TRAIN_STEPS, dtype=np.float64)
        cumulative = np.cumprod(1 - betas)
        alpha, s = np.sqrt(cumulative), np.sqrt(1 - cumulative)
        return alpha, s, s / (alpha + s)

    @property
    def discrete(self) -> bool:
        return self.time == "discrete"

    @property
    def scaled(self) -> bool:
        """Whether the network's input is another than ``y``."""
        return self.discrete or self.path == "cosine"

    def discrete_sigmas(self, steps: int) -> np.ndarray:
        """Flow noise levels of ``steps`` evenly spaced chain indices from 999 to 0, then 0.  Source: DiT's respacing."""
        indices = np.round(np.linspace(self.TRAIN_STEPS - 1, 0, steps)).astype(int)  # one step: the noisiest index
        return np.append(self.chain[2][indices], 0.0)

    def levels(self, indices: Sequence[int]) -> np.ndarray:
        """Flow noise levels of indices of the discrete chain."""
        return self.chain[2][np.asarray(indices, dtype=int)]

    def index(self, sigma: np.ndarray) -> np.ndarray:
        """Chain index whose log signal-to-noise ratio is nearest to that of ``sigma`` [N] in (0, 1]."""
        levels = self.chain[2]
        logit = np.log(levels) - np.log1p(-levels)
        clipped = np.clip(sigma, levels[0], levels[-1])
        wanted = np.log(clipped) - np.log1p(-clipped)
        return np.abs(wanted[:, None] - logit[None]).argmin(axis=1)

    def snap(self, sigmas: np.ndarray) -> np.ndarray:
        """The noise levels the model can be evaluated at, nearest to ``sigmas``; zeros stay.  Identity for flow models."""
        sigmas = np.asarray(sigmas, dtype=np.float64)
        if not self.discrete:
            return sigmas
        return np.where(sigmas > 0, self.chain[2][self.index(np.maximum(sigmas, 1e-12))], 0.0)

    def network_time(self, sigma: np.ndarray) -> np.ndarray:
        """The network's time input at ``sigma`` [N]."""
        sigma = np.asarray(sigma, dtype=np.float64)
        if self.time in ("sigma", "data_time"):
            time = np.arctan2(sigma, 1 - sigma) * 2 / np.pi if self.path == "cosine" else sigma
            return time if self.time == "sigma" else 1 - time
        if self.time == "sigma_x1000":
            # the fp32 product that flow-matching schedulers pass: one ulp of 1000 sigma turns the fastest sinusoid by 6e-5
            return (np.float32(1000) * sigma.astype(np.float32)).astype(np.float64)
        return self.index(sigma).astype(np.float64)

    def input_scale(self, sigma: np.ndarray) -> np.ndarray:
        """Factor from ``y`` to the network's input."""
        if self.path == "cosine":
            alpha, s = self._cosine(sigma)
            return alpha + s
        if not self.discrete:
            return np.ones_like(sigma)
        alpha, s, _ = self.chain
        index = self.index(sigma)
        return alpha[index] + s[index]

    @staticmethod
    def _cosine(sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """alpha and s of the cosine path at flow noise levels: the point of the unit circle along (1 - sigma, sigma)."""
        sigma = np.asarray(sigma, dtype=np.float64)
        length = np.hypot(1 - sigma, sigma)
        return (1 - sigma) / length, sigma / length

    def prior_scale(self, sigma: float) -> float:
        """Factor from unit noise to ``y`` at the first noise level: the model's own prior is unit normal."""
        return float(1 / self.input_scale(np.array([sigma]))[0])

    def velocity(self, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(m, n)`` with ``v = m y + n o`` at ``sigma`` [N]."""
        if self.prediction in ("velocity", "data_velocity"):
            sign = 1.0 if self.prediction == "velocity" else -1.0
            if self.path == "cosine":
                # x = alpha x0 + s eps and x' = pi / 2 (alpha eps - s x0): eps - x0 = (alpha + s) (2 / pi) x' - (alpha - s) x
                alpha, s = self._cosine(sigma)
                return -(alpha - s) * (alpha + s), sign * (alpha + s) * 2 / np.pi
            one = np.ones_like(sigma)
            return 0 * one, sign * one
        alpha, s, _ = self.chain
        index = self.index(sigma)
        slope = (alpha[index] + s[index]) / alpha[index]  # x0 = ((alpha + s) y - s eps) / alpha
        return -slope, slope
