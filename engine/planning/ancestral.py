"""Solvers that step below the next level and come back with new noise: ancestral Euler, LCM and DPM-Solver++ SDE.

From level ``s`` an ordinary step goes down to ``d <= t``; scaled by ``(1 - t) / (1 - d)``, the sample has the clean part of
level ``t``, and ``sqrt(t^2 - ((1 - t) d / (1 - d))^2)`` of unit noise makes up for what is missing.
"""

import math
from collections.abc import Callable

import numpy as np

from .solver_names import checked_choice, checked_share, named
from .solver_rows import Solver, SolverRow, check_falling, log_snr


def _raised(t: float, down: float) -> tuple[float, float]:
    """The factor of a sample at level ``down``, and that of unit noise, which together give one at level ``t``."""
    scale = (1 - t) / (1 - down)
    return scale, math.sqrt(max(t**2 - (scale * down) ** 2, 0.0))


def _rows(name: str, sigmas: np.ndarray, below: Callable[[float, float], float]) -> list[SolverRow]:
    """Euler's step to ``below(s, t)``, and back to ``t``."""
    check_falling(name, sigmas)
    rows = []
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if s == t:
            rows.append(SolverRow(s, i, 1.0, 0.0))
            continue
        down = below(s, t)
        scale, noise = _raised(t, down)
        rows.append(SolverRow(s, i, scale, scale * (down - s), d=noise))
    return rows


def _below_exploding(s: float, t: float, eta: float) -> float:
    """With ``r = sigma / (1 - sigma)``: ``r_up^2 = eta^2 r_t^2 (1 - r_t^2 / r_s^2)`` and ``r_down^2 = r_t^2 - r_up^2``."""
    if t == 0:
        return 0.0
    ratio = t / (1 - t) * (1 - s) / s  # r_t / r_s
    shrunk = t * math.sqrt(max(1 - eta**2 * (1 - ratio**2), 0.0))
    return shrunk / (1 - t + shrunk)


def euler_ancestral(eta: float = 1.0, levels: str = "exploding") -> Solver:
    """Ancestral Euler; ``eta`` from 0, Euler's method, to 1, all of the noise that a level can renew.

    ``levels`` says in which noise level the step down is measured: ``exploding``, that of ``x0 + r eps``, as k-diffusion and
    diffusers' EulerAncestralDiscreteScheduler, or ``flow``, ``d = t (1 + (t / s - 1) eta)``, as ComfyUI for flow models and
    diffusers' LTXEulerAncestralRFScheduler.  Source: the posterior of DDPM (2006.11239) in those levels.
    """
    eta, name = checked_share(eta, "eta"), named("euler-ancestral", eta=(eta, 1.0), levels=(levels, "exploding"))
    if checked_choice(levels, "levels", ("exploding", "flow")) == "flow":
        return Solver(name, lambda sigmas: _rows(name, sigmas, lambda s, t: t * (1 + (t / s - 1) * eta)), stochastic=True)
    return Solver(name, lambda sigmas: _rows(name, sigmas, lambda s, t: _below_exploding(s, t, eta)), stochastic=True)


def lcm() -> Solver:
    """Multistep consistency sampling: the clean estimate, with new noise up to the next level.

    Source: consistency models (2303.01469) algorithm 1.  The estimate is the network's; latent consistency models (2310.04378)
    also mix in the state, by at most 7e-6 at the levels that they are run at.
    """
    return Solver("lcm", lambda sigmas: _rows("lcm", sigmas, lambda s, t: 0.0), stochastic=True)


# --- DPM-Solver++ SDE --------------------------------------------------------------------------------------------------


def _middle(s: float, t: float) -> float:
    """The level halfway from ``s`` to ``t`` in log signal-to-noise ratio."""
    return 1 / (1 + math.exp((log_snr(s) + log_snr(t)) / 2))


def _dpm_sde_rows(name: str, sigmas: np.ndarray, eta: float) -> list[SolverRow]:
    """Two rows a step: to the middle, then from the start once more by the clean estimate there.

    Their noises are those of one Brownian path in ``r = sigma / (1 - sigma)``, which makes the method of second weak order
    instead of first: ``z = q z_1 + sqrt(1 - q^2) z_2`` with ``q^2 = (r_s - r_middle) / (r_s - r_t)``.  ``z_1`` is in the
    state at the middle, and what the first row leaves takes the rest of that out.  A step from level 1 or to 0 has no middle:
    it is one row, of first order.
    """
    check_falling(name, sigmas)
    rows = []
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if s == t:
            rows.append(SolverRow(s, i, 1.0, 0.0))
            continue
        down = _below_exploding(s, t, eta)
        scale, noise = _raised(t, down)
        if s == 1 or t == 0:
            rows.append(SolverRow(s, i, scale, scale * (down - s), d=noise))
            continue
        middle = _middle(s, t)
        lower = _below_exploding(s, middle, eta)
        part, part_noise = _raised(middle, lower)
        clean, shared = scale * (1 - down / s), _shared_noise(s, middle, t) if eta else 0.0
        again = noise * shared / part_noise if eta else 0.0
        velocity = part * (lower - s)
        rows.append(SolverRow(s, i, part, velocity, d=part_noise, e=scale * down / s - again * part, f=-again * velocity))
        rows.append(SolverRow(middle, i, clean + again, -middle * clean, c=1.0, d=noise * math.sqrt(1 - shared**2)))
    return rows


def _shared_noise(s: float, middle: float, t: float) -> float:
    """The correlation of a Brownian path in ``sigma / (1 - sigma)`` from ``s`` to ``middle`` and from ``s`` to ``t``."""
    above, between, below = (level / (1 - level) for level in (s, middle, t))
    return math.sqrt((above - between) / (above - below))


def dpm_sde(eta: float = 1.0) -> Solver:
    """DPM-Solver++ SDE, two network calls a step; ``eta`` 0 is the midpoint form of DPM-Solver++ 2S.

    Source: k-diffusion's ``dpmpp_sde``, as diffusers' DPMSolverSDEScheduler.
    """
    eta = checked_share(eta, "eta")
    name = named("dpm++sde", eta=(eta, 1.0))
    return Solver(name, lambda sigmas: _dpm_sde_rows(name, sigmas, eta), stochastic=True)
