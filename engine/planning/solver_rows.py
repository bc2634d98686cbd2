"""What a solver is: rows of numbers, known before the first call.

A network call with velocity ``v`` at state ``y`` does ``y' = A y + B v + C h + D z`` and leaves ``h' = E y + F v`` behind for
the next row; ``h`` is the previous velocity (Adams-Bashforth, Heun) or the previous clean estimate (DPM-Solver++).  The two
extra columns E and F are what lets multistep solvers on ``x0`` be rows too.  A solver that looks further back adds
``G h_0 + ...`` of what was left before ``h``.  All in flow coordinates and fp64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

# of a plan's table: the factor that makes a state the network's input, then a row's coefficients; more columns follow for
# solvers with ``earlier``
SOLVER_COLUMNS = ("scale", "a", "b", "c", "d", "e", "f")
IDLE = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # the row of a sample that has come to its end: it stays as it is


@dataclass(frozen=True)
class SolverRow:
    """One network call: the noise level it is made at, the step it belongs to, and its coefficients."""

    sigma: float
    step: int
    a: float
    b: float
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0
    f: float = 0.0
    earlier: tuple[float, ...] = ()  # of what was left two rows ago, three rows ago


class HostStep(Protocol):
    """Makes the steps of one run on the host, after calls that leave the velocity in the state."""

    def __call__(self, state: Tensor, velocity: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        """The state after the coming step; all [B, C, H, W] fp32.  ``noise(i)`` is unit normal, the run's i-th such draw.

        Both tensors are the step's to keep.
        """


@dataclass(frozen=True, repr=False)
class Solver:
    """A named recipe ``sigmas -> rows``; ``stochastic`` solvers use in-loop noise."""

    name: str
    rows: Callable[[np.ndarray], list[SolverRow]]
    stochastic: bool = False
    last_sigma: float = 0.0  # a schedule made for this solver ends with a step from here to 0
    # of a network with a learned variance: sigmas -> log of the largest deviation over the smallest, [N], see ``ddpm``
    spreads: Callable[[np.ndarray], np.ndarray] | None = None
    earlier: int = 0  # how many rows before the previous one its rows weigh: each is one more state in memory

    def __repr__(self) -> str:
        return f"<Solver {self.name}>"

    def begin(self) -> HostStep | None:
        """What makes the steps of a run that begins now; None: the rows do."""
        return None

    def first_level(self, sigma: float) -> float:
        """The noise level of the state that a run begins with, where the network is told ``sigma``."""
        return sigma

    def record(self) -> dict[str, Any] | None:
        """Plain numbers and strings that make this solver again; None where its name does."""
        return None


def log_snr(sigma: float) -> float:
    """``log((1 - sigma) / sigma)``, infinite at 0 and 1."""
    if sigma >= 1:
        return -math.inf
    return math.inf if sigma <= 0 else math.log1p(-sigma) - math.log(sigma)


def check_falling(name: str, sigmas: np.ndarray) -> None:
    """Raise ``ValueError`` for levels that rise, which a stochastic solver cannot follow."""
    if sigmas[-1] > sigmas[0]:
        raise ValueError(f"{name} draws down to data, and the levels rise from {sigmas[0]:.6g} to {sigmas[-1]:.6g}")
