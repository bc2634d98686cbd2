"""Solvers as textbooks write them, in fp64 on states and estimates: no rows, no weights, integrals by quadrature.

``SOLVERS[text](y, sigmas, velocity, draw)`` runs the solver of that text; ``velocity(y, sigma, step)`` calls the network and
``draw()`` gives the unit noise of that call.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import Tensor

Velocity = Callable[[Tensor, float, int], Tensor]
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(40)


def lam(sigma: float) -> float:
    return math.log((1 - sigma) / sigma)


def through(nodes: Sequence[float], estimates: Sequence[Tensor], at: float) -> Tensor:
    """The polynomial through the estimates."""
    total = 0.0
    for i, (node, estimate) in enumerate(zip(nodes, estimates, strict=True)):
        others = [other for j, other in enumerate(nodes) if j != i]
        total = total + estimate * math.prod((at - other) / (node - other) for other in others)
    return total


def integrated(s: float, t: float, nodes: Sequence[float], estimates: Sequence[Tensor], noise: bool = False) -> Tensor:
    """``y_t`` less what is left of ``y_s``: an integral of clean estimates over ``e^lambda``, of noise over ``e^-lambda``."""
    half, sign = (lam(t) - lam(s)) / 2, -1 if noise else 1
    at = lam(s) + half * (1 + POINTS)
    parts = [w * math.exp(sign * u) * through(nodes, estimates, u) for u, w in zip(at, WEIGHTS, strict=True)]
    return sign * (1 - t if noise else t) * half * sum(parts)


def ends(s: float, t: float) -> bool:
    return s == 1 or t == 0


def ddim(y: Tensor, v: Tensor, s: float, t: float) -> Tensor:
    return (1 - t) * (y - s * v) + t * (y + (1 - s) * v)


def memory(past: list[tuple[float, Tensor]], order: int) -> tuple[list[float], list[Tensor]]:
    """The last estimates where lambda is finite, the newest first."""
    usable = [(lam(s), estimate) for s, estimate in past[::-1] if s < 1][:order]
    return [node for node, _ in usable], [estimate for _, estimate in usable]


def left(sigmas: Sequence[float], i: int, order: int, few: float = 15) -> int:
    steps = len(sigmas) - 1
    return min(order, steps - i) if steps < few else order


def adams(y: Tensor, sigmas, velocity: Velocity, draw, order: int, noise: bool = False, lower: bool = False) -> Tensor:
    """res: exponential Adams-Bashforth on clean estimates; DEIS: on noise."""
    past: list[tuple[float, Tensor]] = []
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        v = velocity(y, s, i)
        past.append((s, y + (1 - s) * v if noise else y - s * v))
        if ends(s, t):
            y = ddim(y, v, s, t)
            continue
        nodes, estimates = memory(past, left(sigmas, i, order) if lower else order)
        y = (1 - t) / (1 - s) * y if noise else t / s * y
        y = y + integrated(s, t, nodes, estimates, noise)
    return y


def dpm(y: Tensor, sigmas, velocity: Velocity, draw, order: int, eta: float) -> Tensor:
    """k-diffusion's dpmpp_2m_sde (midpoint) and dpmpp_3m_sde, in lambda; without eta DPM-Solver++."""
    past: list[tuple[float, Tensor]] = []
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        v = velocity(y, s, i)
        past.append((s, y - s * v))
        if t == 0 or (s == 1 and not eta):
            y = ddim(y, v, s, t)
            continue
        if s == 1:
            y = (1 - t) * past[-1][1] + t * draw()
            continue
        h = lam(t) - lam(s)
        fast = h * (eta + 1)
        nodes, (m0, *older) = memory(past, left(sigmas, i, order))
        new = t / s * math.exp(-eta * h) * y + (1 - t) * -math.expm1(-fast) * m0
        if len(older) == 1:
            r = (nodes[0] - nodes[1]) / h
            new = new + (1 - t) * -math.expm1(-fast) / 2 * (m0 - older[0]) / r
        if len(older) == 2:
            r0, r1 = (nodes[0] - nodes[1]) / h, (nodes[1] - nodes[2]) / h
            first, second = (m0 - older[0]) / r0, (older[0] - older[1]) / r1
            d1, d2 = first + (first - second) * r0 / (r0 + r1), (first - second) / (r0 + r1)
            phi2 = math.expm1(-fast) / fast + 1
            new = new + (1 - t) * (phi2 * d1 - (phi2 / fast - 0.5) * d2)
        y = new + t * math.sqrt(-math.expm1(-2 * eta * h)) * draw() if eta else new
    return y


def unipc(y: Tensor, sigmas, velocity: Velocity, draw, order: int, bh1: bool = False) -> Tensor:
    """Predict, evaluate, correct the step that led here, predict from there."""
    past: list[tuple[float, Tensor]] = []
    correct: Callable[[Tensor], Tensor] | None = None
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        v = velocity(y, s, i)
        m = y - s * v
        past.append((s, m))
        if t == 0:
            return m
        y = correct(m, y) if correct else y
        nodes, estimates = memory(past, left(sigmas, i, order, few=math.inf))
        y, correct = predicted(y, s, t, m, nodes, estimates, bh1)
    return y


def predicted(y, s, t, m, nodes, estimates, bh1):
    """The prediction at ``t``, and a function of the estimate there and of it, the corrected state."""
    if s == 1:  # the limit of bh2; bh1 has none
        return t * y + (1 - t) * m, lambda new, ahead: ahead if bh1 else ahead + (1 - t) / 2 * (new - m)
    h = lam(t) - lam(s)
    b = h if bh1 else -math.expm1(-h)
    start = t / s * y
    first = start + (1 - t) * -math.expm1(-h) * m
    if len(nodes) == 1:
        return first, lambda new, ahead: first + (1 - t) * b / 2 * (new - m)
    if len(nodes) == 2:
        ahead = first + (1 - t) * b / 2 * (m - estimates[1]) * h / (nodes[0] - nodes[1])
    else:
        ahead = start + integrated(s, t, nodes, estimates)
    return ahead, lambda new, _: start + integrated(s, t, [lam(t), *nodes], [new, *estimates])


def ancestral(y: Tensor, sigmas, velocity: Velocity, draw, eta: float, flow: bool) -> Tensor:
    """k-diffusion's sample_euler_ancestral and ComfyUI's for flow models."""
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        v, noise = velocity(y, s, i), draw()
        if t == 0:
            y = y - s * v
        elif flow:
            down = t * (1 + (t / s - 1) * eta)
            y = (1 - t) / (1 - down) * (down / s * y + (1 - down / s) * (y - s * v))
            y = y + math.sqrt(t**2 - down**2 * (1 - t) ** 2 / (1 - down) ** 2) * noise
        else:
            y = exploding_step(y, y - s * v, s, t, eta, noise)
    return y


def exploding_step(y: Tensor, clean: Tensor, s: float, t: float, eta: float, noise: Tensor) -> Tensor:
    """Down to ``r_down`` and up again, on ``x0 + r eps`` = ``y / (1 - sigma)``; from level 1, ``y`` is noise of any ``r``."""
    above, r = (math.inf if s == 1 else s / (1 - s)), t / (1 - t)
    up = min(r, eta * math.sqrt(r**2 * (1 - (r / above) ** 2)))
    down = math.sqrt(r**2 - up**2)
    kept = down * y if s == 1 else down / above * y / (1 - s)
    share = 0.0 if s == 1 else down / above
    return (1 - t) * (kept + (1 - share) * clean + up * noise)


def lcm(y: Tensor, sigmas, velocity: Velocity, draw) -> Tensor:
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        y = (1 - t) * (y - s * velocity(y, s, i)) + t * draw()
    return y


def dpm_sde(y: Tensor, sigmas, velocity: Velocity, draw) -> Tensor:
    """k-diffusion's sample_dpmpp_sde with r = 1/2: a Brownian path in ``sigma / (1 - sigma)``, by its normed increments."""
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        clean, noise = y - s * velocity(y, s, i), draw()
        if ends(s, t):
            y = clean if t == 0 else (1 - t) * clean + t * noise
            continue
        middle = 1 / (1 + math.exp((lam(s) + lam(t)) / 2))
        ahead = exploding_step(y, clean, s, middle, 1.0, noise)
        between = ahead - middle * velocity(ahead, middle, i)
        r, r_middle, r_end = (level / (1 - level) for level in (s, middle, t))
        path = math.sqrt(r - r_middle) * noise + math.sqrt(r_middle - r_end) * draw()
        y = exploding_step(y, between, s, t, 1.0, path / math.sqrt(r - r_end))
    return y


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "dpm++3m": partial(dpm, order=3, eta=0.0),
    "dpm++2m-sde": partial(dpm, order=2, eta=1.0),
    "dpm++2m-sde(eta=0.4)": partial(dpm, order=2, eta=0.4),
    "dpm++3m-sde": partial(dpm, order=3, eta=1.0),
    "dpm++sde": dpm_sde,
    "unipc": partial(unipc, order=2),
    "unipc(order=1)": partial(unipc, order=1),
    "unipc(order=3)": partial(unipc, order=3),
    "unipc(kind=bh1)": partial(unipc, order=2, bh1=True),
    "deis": partial(adams, order=2, noise=True, lower=True),
    "deis(order=3)": partial(adams, order=3, noise=True, lower=True),
    "res_2m": partial(adams, order=2),
    "res_3m": partial(adams, order=3),
    "euler-ancestral": partial(ancestral, eta=1.0, flow=False),
    "euler-ancestral(eta=0.6)": partial(ancestral, eta=0.6, flow=False),
    "euler-ancestral(eta=0.6, levels=flow)": partial(ancestral, eta=0.6, flow=True),
    "lcm": lcm,
}
