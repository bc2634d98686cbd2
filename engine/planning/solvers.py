"""The solvers by name."""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from segue.models.spec import ModelSpec

from ..numeric_input import real_number
from .ancestral import dpm_sde, euler_ancestral, lcm
from .exponential import deis, dpm_multistep, res_multistep, unipc
from .solver_names import read_name
from .solver_rows import Solver, SolverRow, check_falling


def _euler_rows(sigmas: np.ndarray) -> list[SolverRow]:
    return [SolverRow(s, i, 1.0, t - s) for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False))]


def _heun_rows(sigmas: np.ndarray) -> list[SolverRow]:
    """Predictor ``y + D v`` then, at the predicted point, ``y' = y_pred + D / 2 (v_pred - v)``; a step to 0 is Euler's."""
    rows = []
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        rows.append(SolverRow(s, i, 1.0, t - s, f=1.0))
        if t > 0:
            rows.append(SolverRow(t, i, 1.0, (t - s) / 2, c=-(t - s) / 2))
    return rows


def _adams_bashforth_rows(sigmas: np.ndarray) -> list[SolverRow]:
    """Two-step Adams-Bashforth on uneven steps; the first step is Euler's."""
    rows, previous = [], None
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        delta = t - s
        ratio = delta / previous if previous else 0.0
        rows.append(SolverRow(s, i, 1.0, delta * (1 + ratio / 2), c=-delta * ratio / 2, f=1.0))
        previous = delta
    return rows


def _euler_maruyama_rows(sigmas: np.ndarray, diffusion: Callable[[float], float]) -> list[SolverRow]:
    """Reverse SDE ``dy = (v + w / (2 s) eps) ds + sqrt(w) dW`` with ``eps = y + (1 - s) v``; the last step has no noise."""
    check_falling("euler-maruyama", sigmas)
    rows, last = [], sigmas[-1]
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if s == t:
            rows.append(SolverRow(s, i, 1.0, 0.0))
            continue
        w = real_number(diffusion(s), "the diffusion coefficient must be a number")
        if not math.isfinite(w) or w < 0:
            raise ValueError(f"the diffusion coefficient must be finite and not negative, got {w} at sigma {s:.4g}")
        delta, drift = t - s, w / (2 * s)
        noise = 0.0 if t == last else math.sqrt(w * -delta)
        rows.append(SolverRow(s, i, 1 + delta * drift, delta * (1 + drift * (1 - s)), d=noise))
    return rows


def euler_maruyama(diffusion: Callable[[float], float] | None = None, last_sigma: float = 0.04) -> Solver:
    """The SiT sampler for the reverse SDE; ``diffusion(sigma)`` defaults to ``2 sigma``.  Source: SiT (2401.08740), REPA."""
    last_sigma = real_number(last_sigma, "last_sigma must be a number")
    if not 0 < last_sigma < 1:
        raise ValueError(f"last_sigma must lie between 0 and 1, got {last_sigma}")
    function = diffusion or (lambda sigma: 2 * sigma)
    return Solver("euler-maruyama", lambda sigmas: _euler_maruyama_rows(sigmas, function), True, last_sigma)


def _variance(sigma: float) -> float:
    """``s^2`` of the variance-preserving state ``alpha x0 + s eps`` whose flow noise level is ``sigma = s / (alpha + s)``."""
    return sigma**2 / (sigma**2 + (1 - sigma) ** 2)


def _ddpm_rows(sigmas: np.ndarray) -> list[SolverRow]:
    """The posterior of the state before given the clean estimate, with its smallest deviation; none at the step to 0.

    With ``A`` and ``P`` for ``alpha^2`` here and there, and ``b = 1 - A / P``:
    ``x' = sqrt(P) b / (1 - A) x0 + sqrt(1 - b) (1 - P) / (1 - A) x``, and the smallest variance is ``b (1 - P) / (1 - A)``.
    """
    check_falling("ddpm", sigmas)
    rows = []
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if s == t:
            rows.append(SolverRow(s, i, 1.0, 0.0))
            continue
        here, there = _variance(s), _variance(t)  # 1 - A, 1 - P
        beta = (here - there) / (1 - there)  # 1 - A / P
        clean, state = math.sqrt(1 - there) * beta / here, math.sqrt(1 - beta) * there / here
        factor, next_factor = (1 / math.hypot(level, 1 - level) for level in (s, t))  # x = factor y
        a, b = (clean + state * factor) / next_factor, -clean * s / next_factor  # x0 = y - s v
        rows.append(SolverRow(s, i, a, b, d=math.sqrt(beta * there / here) / next_factor))
    return rows


def _ddpm_spreads(sigmas: np.ndarray) -> np.ndarray:
    """Half of ``log(beta / posterior variance)`` at every call; 0 where no noise is drawn."""
    pairs = zip(sigmas, sigmas[1:], strict=False)
    return np.array([math.log(_variance(s) / _variance(t)) / 2 if t not in (0, s) else 0.0 for s, t in pairs])


EULER = Solver("euler", _euler_rows)
HEUN = Solver("heun", _heun_rows)
ADAMS_BASHFORTH = Solver("ab2", _adams_bashforth_rows)
EULER_MARUYAMA = euler_maruyama()
DDIM = Solver("ddim", _euler_rows)  # in flow coordinates DDIM is Euler's method, for every parameterisation

# Ancestral sampling with the variance that the network has learned: between those of the posterior and of the chain, by its
# second half of channels ``v`` for the condition, ``log deviation = log smallest + (v + 1) / 2 spread``, element by element.
# Source: DDPM (2006.11239) equations 6 and 7, improved DDPM (2102.09672) equation 15, as the official sampler of DiT.
DDPM = Solver("ddpm", _ddpm_rows, stochastic=True, spreads=_ddpm_spreads)


def check_learned_variance(solver: Solver, spec: ModelSpec, silent_steps: int = 0) -> None:
    """Raise ``ValueError`` for a solver that needs a learned variance where the network, or a rule's silent step, has none."""
    if solver.spreads is None:
        return
    if spec.prediction != "epsilon" or spec.out_channels != 2 * spec.channels:
        raise ValueError(
            f"solver {solver.name!r} draws with the variance that a DiT has learned, and {spec.name} predicts "
            f"{spec.prediction} in {spec.out_channels} channels for {spec.channels}: it has none; use another solver"
        )
    if silent_steps:
        raise ValueError(
            f"solver {solver.name!r} reads its variance from the network, which zero_steps={silent_steps} leaves out"
        )


def velocity_solver(base: Solver) -> Solver:
    """The calls of ``base``, each of which leaves the guided velocity in the state: for loops that belong to someone else."""
    return Solver(f"velocity of {base.name}", lambda sigmas: [SolverRow(r.sigma, r.step, 0.0, 1.0) for r in base.rows(sigmas)])


VELOCITY = velocity_solver(EULER)
# leaves the guided noise ``eps = y + (1 - sigma) v`` in the state, for loops of noise predictions
NOISE = Solver("noise", lambda sigmas: [SolverRow(s, i, 1.0, 1 - s) for i, s in enumerate(sigmas[:-1])])

# those with options, which a text may give: ``unipc(order=3)``
FACTORIES: dict[str, Callable[..., Solver]] = {
    "dpm++2m": partial(dpm_multistep, 2),
    "dpm++3m": partial(dpm_multistep, 3),
    "dpm++2m-sde": partial(dpm_multistep, 2, eta=1.0),
    "dpm++3m-sde": partial(dpm_multistep, 3, eta=1.0),
    "dpm++sde": dpm_sde,
    "unipc": unipc,
    "deis": deis,
    "res_2m": partial(res_multistep, 2),
    "res_3m": partial(res_multistep, 3),
    "euler-ancestral": euler_ancestral,
    "lcm": lcm,
}
SOLVERS = {solver.name: solver for solver in (EULER, HEUN, ADAMS_BASHFORTH, EULER_MARUYAMA, DDIM, DDPM)}
SOLVERS |= {name: factory() for name, factory in FACTORIES.items()}


def get_solver(solver: str | Solver) -> Solver:
    """A solver by name, by name and options as in ``unipc(order=3)``, or as given.  Raises ``ValueError``."""
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, str) and solver in SOLVERS:
        return SOLVERS[solver]
    name, options = read_name(solver) if isinstance(solver, str) else (None, {})
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}")
    known = list(_options(FACTORIES[name])) if name in FACTORIES else []
    for option in options:
        if option not in known:
            raise ValueError(f"solver {name!r} has no option {option!r}; its options: {', '.join(known) or 'none'}")
    try:
        return FACTORIES[name](**options) if options else SOLVERS[name]
    except TypeError as error:  # of a value in a text, which is a text that is none
        raise ValueError(f"solver {solver!r}: {error}") from None


def is_named(solver: Solver) -> bool:
    """Whether its name makes the solver again: what a record of it needs.  Compared by the rows of one run."""
    try:
        own = get_solver(solver.name)
    except ValueError:
        return False
    if own is solver:
        return True
    same = all(getattr(own, name) == getattr(solver, name) for name in ("stochastic", "last_sigma", "spreads", "earlier"))
    levels = np.linspace(1, 0, 9)
    return same and own.rows(levels) == solver.rows(levels)


def _options(factory: Callable[..., Solver]) -> Iterable[str]:
    """The options that a text may give: those that the name has not settled."""
    settled = len(factory.args) if isinstance(factory, partial) else 0
    return [*inspect.signature(factory.func if isinstance(factory, partial) else factory).parameters][settled:]
