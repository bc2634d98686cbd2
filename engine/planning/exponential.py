"""Exponential Adams solvers: DPM-Solver++, res, UniPC and DEIS, one quadrature of polynomials in the log signal-to-noise ratio.

With ``lambda = log((1 - s) / s)``, from level ``s`` to ``t`` at a distance ``h`` in lambda, the flow is

    y_t = t / s y_s + (1 - t) int_0^h e^-(h - u) x0(u) du  =  (1 - t) / (1 - s) y_s - t int_0^h e^(h - u) eps(u) du,

and a multistep solver puts the polynomial through its last estimates in the place of ``x0`` or ``eps``.  A step of infinite
``h`` (from or to level 0 or 1) or of none is Euler's, and no polynomial reaches across one.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ..numeric_input import whole_number
from .solver_names import checked_choice, checked_flag, checked_share, named
from .solver_rows import Solver, SolverRow, check_falling, log_snr

SERIES = 20  # terms of phi where its argument is below 1: the next is 1e-18 of the first
INVERSE_FACTORIALS = tuple(1 / math.factorial(k) for k in range(SERIES + 4))
FEW_STEPS = 15  # shorter runs end with steps of lower order, as diffusers' do


def phi(order: int, z: float) -> float:
    """``phi_k(z) = sum_j z^j / (j + k)!``: ``phi_1 = (e^z - 1) / z``, ``phi_(k + 1) = (phi_k - 1 / k!) / z``."""
    if abs(z) < 1:  # where the recursion cancels
        value = 0.0
        for inverse in reversed(INVERSE_FACTORIALS[order : order + SERIES]):
            value = value * z + inverse
        return value
    value = math.exp(z)
    for inverse in INVERSE_FACTORIALS[:order]:
        value = (value - inverse) / z
    return value


def adams_weights(step: float, nodes: Sequence[float], rate: float = 1.0) -> np.ndarray:
    """``int_0^step e^(-rate (step - u)) l_k(u) du`` of the Lagrange polynomials ``l_k`` through ``nodes`` [p], as [p] fp64."""
    powers = np.arange(len(nodes))
    factorials = np.array([math.factorial(power) for power in powers])
    moments = [step * phi(power + 1, -rate * step) for power in range(len(nodes))]
    return np.linalg.solve((np.array(nodes) / step) ** powers[:, None] / factorials[:, None], moments)


def _nodes(distances: Sequence[float], i: int, order: int) -> list[float]:
    """Where the estimates of call ``i`` and of those before it lie in lambda, from call ``i``, at most ``order`` of them."""
    nodes = [0.0]
    for distance in distances[:i][::-1][: order - 1]:
        if not math.isfinite(distance) or not distance:
            break
        nodes.append(nodes[-1] - distance)
    return nodes


def _distances(sigmas: np.ndarray) -> list[float]:
    """``h`` of every step."""
    pairs = zip(sigmas, sigmas[1:], strict=False)
    return [0.0 if s == t else log_snr(t) - log_snr(s) for s, t in pairs]


def _orders(sigmas: np.ndarray, order: int, lower_final: bool, few: float = FEW_STEPS) -> list[int]:
    """The order that each step may have: near the end of less than ``few`` steps that fall, as many as there are left."""
    above = int((sigmas[:-1] > 0).sum())  # a step from 0 to 0 is none
    lowered = lower_final and len(sigmas) - 1 < few and sigmas[-1] < sigmas[0]
    return [min(order, max(above - i, 1)) if lowered else order for i in range(len(sigmas) - 1)]


def _euler_and(
    s: float, t: float, step: int, extra: np.ndarray, estimate: float, state: float = 0.0, noise: float = 0.0
) -> SolverRow:
    """Euler's step, plus ``extra`` times the estimates of this call and of those before it, of ``state`` and of unit noise.

    An estimate is the state and ``estimate`` times the velocity.
    """
    weights: list[float] = [*extra, *[0.0] * (2 - len(extra))]
    first, previous, *earlier = weights
    a, b = 1 + first + state, t - s + first * estimate
    return SolverRow(s, step, a, b, c=previous, d=noise, e=1.0, f=estimate, earlier=tuple(earlier))


def saturating(h: float) -> float:
    """``1 - e^-h``: the weight of ``x0`` in a step of first order, and ``B_2`` of UniPC."""
    return -math.expm1(-h)


def _weights(h: float, nodes: Sequence[float], short: Callable[[float], float] | None) -> np.ndarray:
    """Those of estimates of ``x0`` at ``nodes`` in a step of ``h``; ``short``: the ``B`` of the short form of second order."""
    if math.isinf(h):
        return np.ones(1)
    if len(nodes) == 2 and short is not None:
        slope = short(h) * h / (-2 * nodes[1])
        return np.array([saturating(h) + slope, -slope])
    return adams_weights(h, nodes)


# --- DPM-Solver++ and res ----------------------------------------------------------------------------------------------


Weights = Callable[[float, Sequence[float]], np.ndarray]


def _published(h: float, nodes: Sequence[float], midpoint: bool) -> np.ndarray:
    """The weights of DPM-Solver++, of which those of third order take half of the second difference.

    That of the authors' code, diffusers and k-diffusion alike: the error falls as one of second order, from a smaller constant.
    """
    if len(nodes) < 3 or math.isinf(h):
        return _weights(h, nodes, saturating if midpoint else None)
    _, first, second = nodes
    products = np.array([first * second, first * (first - second), second * (second - first)])
    return adams_weights(h, nodes) - h**3 * phi(3, -h) / products


def _dpm_rows(name: str, sigmas: np.ndarray, order: int, weights: Weights, eta: float, lower_final: bool) -> list[SolverRow]:
    """``y' = t / s e^(-eta h) y + (1 - t) sum_k w_k x0_k + t sqrt(1 - e^(-2 eta h)) z``, ``w`` of a clock (1 + eta) as fast."""
    if eta:
        check_falling(name, sigmas)
    rows, distances, orders = [], _distances(sigmas), _orders(sigmas, order, lower_final)
    for i, (s, t, h) in enumerate(zip(sigmas, sigmas[1:], distances, strict=False)):
        extra, state, noise = np.zeros(1), 0.0, 0.0
        if h and (math.isfinite(h) or eta):
            nodes = [(1 + eta) * node for node in _nodes(distances, i, orders[i])]
            extra = (1 - t) * weights((1 + eta) * h, nodes)
            extra[0] -= 1 - t / s
        if h and eta:
            state, noise = t / s * math.expm1(-eta * h), t * math.sqrt(saturating(2 * eta * h))
        rows.append(_euler_and(s, t, i, extra, -s, state, noise))
    return rows


def dpm_multistep(order: int = 2, kind: str = "midpoint", eta: float = 0.0, lower_final: bool = True) -> Solver:
    """Multistep DPM-Solver++ on clean estimates, of order 1 to 3; ``eta`` above 0 follows the reverse SDE.

    ``kind`` is ``midpoint`` or ``heun``, diffusers' names of the short form of second order and of the exact one.
    ``lower_final`` lowers the order at the end of runs of less than 15 steps.  Source: DPM-Solver++ (2211.01095); the SDE as
    k-diffusion's ``dpmpp_2m_sde`` and ``dpmpp_3m_sde``, at ``eta = 1`` and order 2 as diffusers' ``sde-dpmsolver++``.
    """
    order, eta = _checked_order(order), checked_share(eta, "eta")
    midpoint = checked_choice(kind, "kind", ("midpoint", "heun")) == "midpoint"
    options = {"kind": (kind, "midpoint"), "lower_final": (checked_flag(lower_final, "lower_final"), True)}
    name = named(f"dpm++{order}m-sde", eta=(eta, 1.0), **options) if eta else named(f"dpm++{order}m", **options)

    def rows(sigmas: np.ndarray) -> list[SolverRow]:
        return _dpm_rows(name, sigmas, order, partial(_published, midpoint=midpoint), eta, lower_final)

    return Solver(name, rows, stochastic=eta > 0, earlier=max(order - 2, 0))


def res_multistep(order: int = 2) -> Solver:
    """Exponential Adams-Bashforth on clean estimates, of order 1 to 3; ``res_2m`` is DPM-Solver++ 2M of kind ``heun``.

    Source: Hochbruck and Ostermann, "Exponential integrators" (2010) section 2.4; refined exponential solver (2308.02157).
    """
    order = _checked_order(order)
    name = f"res_{order}m"
    weights = partial(_weights, short=None)
    return Solver(name, lambda sigmas: _dpm_rows(name, sigmas, order, weights, 0.0, False), earlier=max(order - 2, 0))


# --- UniPC -------------------------------------------------------------------------------------------------------------


def _unipc_rows(
    sigmas: np.ndarray, order: int, short: Callable[[float], float], corrector: bool, lower_final: bool
) -> list[SolverRow]:
    """The corrector of a step needs the estimate at its end: it is made, with the next step, in the row of the next call."""
    rows, distances, orders = [], _distances(sigmas), _orders(sigmas, order, lower_final, math.inf)
    correction = np.zeros(1)  # of the state, in estimates of this call and of those before it
    for i, (s, t, h) in enumerate(zip(sigmas, sigmas[1:], distances, strict=False)):
        nodes = _nodes(distances, i, orders[i])
        extra, weights = t / s * correction if correction.any() else correction, np.zeros(1)
        if h and math.isfinite(h):
            weights = (1 - t) * _weights(h, nodes, short)
            extra = _sum(extra, weights)
            extra[0] -= 1 - t / s
        rows.append(_euler_and(s, t, i, extra, -s))
        if corrector:
            correction = _correction(t, h, nodes, short)
    return rows


def _correction(t: float, h: float, nodes: Sequence[float], short: Callable[[float], float]) -> np.ndarray:
    """What the corrector of a step to ``t`` adds to its prediction, of the estimate there and of those it was made of."""
    if not h or not t or math.isinf(short(h)) or (math.isinf(h) and len(nodes) > 1):
        return np.zeros(1)
    if len(nodes) == 1:
        return (1 - t) * short(h) / 2 * np.array([1.0, -1.0])
    corrected = adams_weights(h, [h, *nodes])
    corrected[1:] -= _weights(h, nodes, short)
    return (1 - t) * corrected


def _sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The sum of two rows of weights, of which one may be shorter."""
    total = np.zeros(max(len(first), len(second)))
    total[: len(first)] += first
    total[: len(second)] += second
    return total


def unipc(order: int = 2, kind: str = "bh2", corrector: bool = True, lower_final: bool = True) -> Solver:
    """UniPC on clean estimates, predictor and corrector of order 1 to 3, at one network call a step.

    ``kind`` is ``bh1`` or ``bh2``, which tells the short forms of the lowest orders apart; ``bh1`` does not correct a step from
    level 1, where its ``B`` is infinite.  ``lower_final`` lowers the order in the last steps.  Source: UniPC (2302.04867).
    """
    order, bh1 = _checked_order(order), checked_choice(kind, "kind", ("bh2", "bh1")) == "bh1"
    flags = {"corrector": (checked_flag(corrector, "corrector"), True)}
    flags |= {"lower_final": (checked_flag(lower_final, "lower_final"), True)}
    name = named("unipc", order=(order, 2), kind=(kind, "bh2"), **flags)
    short = (lambda h: h) if bh1 else saturating
    earlier = max(order - 1 if corrector else order - 2, 0)
    return Solver(name, lambda sigmas: _unipc_rows(sigmas, order, short, corrector, lower_final), earlier=earlier)


# --- DEIS --------------------------------------------------------------------------------------------------------------


def _deis_rows(sigmas: np.ndarray, order: int, lower_final: bool) -> list[SolverRow]:
    rows, distances, orders = [], _distances(sigmas), _orders(sigmas, order, lower_final)
    for i, (s, t, h) in enumerate(zip(sigmas, sigmas[1:], distances, strict=False)):
        extra = np.zeros(1)
        if h and math.isfinite(h):
            extra = -t * adams_weights(h, _nodes(distances, i, orders[i]), rate=-1.0)
            extra[0] += t * math.expm1(h)
        rows.append(_euler_and(s, t, i, extra, 1 - s))
    return rows


def deis(order: int = 2, lower_final: bool = True) -> Solver:
    """DEIS on the noise, as a polynomial in the logarithm of the noise level, of order 1 to 3.

    ``lower_final`` lowers the order at the end of runs of less than 15 steps.  Source: DEIS (2204.13902), the ``log rho``
    multistep method.
    """
    order = _checked_order(order)
    name = named("deis", order=(order, 2), lower_final=(checked_flag(lower_final, "lower_final"), True))
    return Solver(name, lambda sigmas: _deis_rows(sigmas, order, lower_final), earlier=max(order - 2, 0))


def _checked_order(order: int) -> int:
    order = whole_number(order, "the order of a solver must be a whole number")
    if not 1 <= order <= 3:
        raise ValueError(f"the order of a solver must be 1, 2 or 3, got {order}")
    return order
