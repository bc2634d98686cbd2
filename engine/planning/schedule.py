"""Noise levels of a run, from the first to the last: falling to 0 for a finished sample, rising from 0 to invert a picture."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..numeric_input import counting_number, real_number
from . import spacing

MOST_STEPS = 1 << 20  # no run has more; a slip of the keyboard would fill the memory with tables


def check_steps(steps: int) -> int:
    """``steps`` as an integer in [1, 2^20], else raise."""
    steps = counting_number(steps, "steps")
    if steps > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS}, got {steps}")
    return steps


@dataclass(frozen=True, repr=False)
class Schedule:
    """``steps + 1`` noise levels inside [0, 1] that fall throughout, or rise throughout; taken as they are.

    A level may stand twice in a row: a step of no length, which leaves the sample as it is.
    """

    sigmas: tuple[float, ...]
    name: str = "list"

    def __post_init__(self):
        sigmas = tuple(real_number(sigma, "a noise level must be a number") for sigma in self.sigmas)
        object.__setattr__(self, "sigmas", sigmas)
        if len(sigmas) < 2:
            raise ValueError(f"a schedule needs at least two noise levels, got {len(sigmas)}")
        for sigma in sigmas:
            if not math.isfinite(sigma) or not 0 <= sigma <= 1:
                raise ValueError(f"a noise level must lie in [0, 1], got {sigma}")
        for first, second in zip(sigmas, sigmas[1:], strict=False):
            if (second - first) * (sigmas[-1] - sigmas[0]) < 0 or (first != second and sigmas[0] == sigmas[-1]):
                raise ValueError(
                    f"noise levels must fall throughout or rise throughout, got {first:.6g} followed by {second:.6g} "
                    f"in a list from {sigmas[0]:.6g} to {sigmas[-1]:.6g}"
                )

    def __repr__(self) -> str:
        return f"<Schedule {self.name}: {self.steps} steps from {self.sigmas[0]:.6g} to {self.sigmas[-1]:.6g}>"

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def rises(self) -> bool:
        """Whether the run adds noise, as an inversion does."""
        return self.sigmas[-1] > self.sigmas[0]

    def reversed(self) -> "Schedule":
        """The same levels the other way round: what inverts a run, and back."""
        return Schedule(self.sigmas[::-1], self.name)

    def array(self) -> np.ndarray:
        return np.array(self.sigmas, dtype=np.float64)

    def truncate(self, strength: float) -> "Schedule":
        """The last steps, as image-to-image runs them: all but :func:`skipped_steps`.  Raises for levels that rise."""
        skipped = skipped_steps(self.steps, strength)
        check_falls(self, strength)
        return Schedule(self.sigmas[skipped:], self.name)


def skipped_steps(steps: int, strength: float) -> int:
    """How many of ``steps`` an image-to-image run leaves out: ``floor(steps (1 - strength))``, diffusers' count."""
    strength = real_number(strength, "strength must be a number")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    return int(max(steps - steps * strength, 0))


def check_falls(schedule: Schedule, strength: float) -> None:
    """Raise ``ValueError`` for a part of levels that rise: an inversion begins with the picture as it is."""
    if strength != 1 and schedule.rises:
        first, last = schedule.sigmas[0], schedule.sigmas[-1]
        raise ValueError(
            f"strength {strength:g} keeps the last part of levels that fall, and these rise from {first:.6g} to {last:.6g}"
        )


def linear(steps: int, start: float = 1.0) -> Schedule:
    """Evenly spaced levels from ``start`` to 0."""
    start = real_number(start, "the first noise level must be a number")
    return Schedule(tuple(np.linspace(start, 0.0, check_steps(steps) + 1)), "linear")


def flow_shift(steps: int, shift: float = 3.0) -> Schedule:
    """Levels ``s t / (1 + (s - 1) t)`` for evenly spaced ``t`` from 1 to 0.  Source: SD3 (arXiv 2403.03206), eq. 23."""
    shift = real_number(shift, "shift must be a number")
    if not math.isfinite(shift) or shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")
    t = np.linspace(1.0, 0.0, check_steps(steps) + 1)
    return Schedule(tuple(shift * t / (1 + (shift - 1) * t)), f"shift {shift:g}")


def resolution_shift(
    steps: int, tokens: int, base: tuple[int, float] = (256, 0.5), top: tuple[int, float] = (4096, 1.15)
) -> Schedule:
    """Shift ``e^mu`` with ``mu`` linear in the number of image tokens through ``base`` and ``top`` = (tokens, mu).

    Source: the dynamic shift of diffusers' flow-matching scheduler (exponential form).
    """
    tokens = counting_number(tokens, "tokens")
    (t0, mu0), (t1, mu1) = base, top
    mu = mu0 + (mu1 - mu0) * (tokens - t0) / (t1 - t0)
    return Schedule(flow_shift(steps, math.exp(mu)).sigmas, f"shift for {tokens} tokens")


def karras(steps: int, first: float = 1.0, last: float = 1e-3, rho: float = 7.0) -> Schedule:
    """Levels even in their ``rho``-th root from ``first`` to ``last``, then 0.  Source: EDM (arXiv 2206.00364) equation 5."""
    rho = real_number(rho, "rho must be a number")
    if not math.isfinite(rho) or rho <= 0:
        raise ValueError(f"rho must be positive, got {rho}")
    return _spaced("karras", steps, first, last, partial(spacing.karras, rho=rho))


def exponential(steps: int, first: float = 1.0, last: float = 1e-3) -> Schedule:
    """Levels even in their logarithm from ``first`` to ``last``, then 0."""
    return _spaced("exponential", steps, first, last, spacing.exponential)


def beta(steps: int, first: float = 1.0, last: float = 1e-3, alpha: float = 0.6, beta: float = 0.6) -> Schedule:
    """Levels at quantiles of the beta law from ``first`` to ``last``, then 0.  Source: Beta Sampling (arXiv 2407.12173)."""
    alpha, beta = (real_number(value, f"{name} must be a number") for name, value in (("alpha", alpha), ("beta", beta)))
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    return _spaced("beta", steps, first, last, partial(spacing.beta, alpha=alpha, beta=beta))


def _spaced(name: str, steps: int, first: float, last: float, space: Callable[[float, float, int], np.ndarray]) -> Schedule:
    """``steps`` levels from ``first`` to ``last`` by ``space``, then 0."""
    first, last = (real_number(level, "a noise level must be a number") for level in (first, last))
    if not 0 < last <= first <= 1:
        raise ValueError(f"{name} levels need 0 < last <= first <= 1, got first {first:g} and last {last:g}")
    return Schedule((*np.minimum(space(first, last, check_steps(steps)), first), 0.0), name)


def spaced_chain(name: str, steps: int, parameterization) -> Schedule:
    """:data:`SPACINGS` over a discrete chain, in ``r`` of ``x0 + r eps``, as diffusers' schedulers do; then 0."""
    ends = parameterization.levels([parameterization.TRAIN_STEPS - 1, 0])
    first, last = (ends / (1 - ends)).tolist()
    ratios = SPACINGS[name](first, last, check_steps(steps))
    return Schedule((*(ratios / (1 + ratios)), 0.0), name)


def from_sigmas(sigmas: Sequence[float]) -> Schedule:
    """Any list of levels; its last entry is the level of the result (0 for a finished sample)."""
    return Schedule(tuple(sigmas))


def from_scheduler(scheduler) -> Schedule:
    """The levels of a diffusers flow-matching scheduler after ``set_timesteps``, as they are (never recomputed)."""
    sigmas = scheduler_sigmas(scheduler)
    distinct = [float(sigmas[0])]
    distinct += [float(b) for a, b in zip(sigmas[:-1], sigmas[1:], strict=True) if float(a) != float(b)]  # Heun repeats
    return Schedule(tuple(distinct), type(scheduler).__name__)


def scheduler_sigmas(scheduler) -> Sequence[float]:
    """The ``sigmas`` of a diffusers scheduler whose timesteps are set.  Raises ``TypeError`` or ``ValueError`` otherwise."""
    name, sigmas = type(scheduler).__name__, getattr(scheduler, "sigmas", None)
    if sigmas is None:
        raise TypeError(f"{name} has no sigmas; a flow-matching scheduler is needed")
    # before, some hold None for the number of steps, others nothing at all, and as many levels as times: none to end at
    unset = len(getattr(scheduler, "timesteps", ())) == len(sigmas)
    if getattr(scheduler, "num_inference_steps", None if unset else 0) is None:
        raise ValueError(f"the timesteps of {name} are not set: call its set_timesteps before the run")
    return sigmas


FLOW_SPACINGS: dict[str, Callable[[int], Schedule]] = {"karras": karras, "exponential": exponential, "beta": beta}
SPACINGS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "karras": spacing.karras,
    "exponential": spacing.exponential,
    "beta": spacing.beta,
}
NAMED = ("linear", "shift", "resolution", "karras", "exponential", "beta", "native")


def resolve_schedule(schedule, steps: int | None, solver, parameterization, tokens: int) -> Schedule:
    """A Schedule from a name, a list of levels or a Schedule; None is the model's own.

    ``native`` is linear for flow models and evenly spaced chain indices for discrete ones; ``shift`` is 3, ``shift=2.5``
    another; ``resolution`` depends on the number of image tokens; ``karras``, ``exponential`` and ``beta`` space flow levels
    down to .001, as diffusers' flow-matching scheduler, or the chain.  ``steps`` (default 28) must agree with a given list.
    """
    if schedule is not None and not isinstance(schedule, str):
        resolved = as_schedule(schedule)
        if steps is not None and check_steps(steps) != resolved.steps:
            raise ValueError(f"steps is {steps}, but the given schedule has {resolved.steps} steps")
        return resolved
    steps, name = check_steps(28 if steps is None else steps), schedule or "native"
    if name == "native" and parameterization.discrete:
        return Schedule(tuple(parameterization.discrete_sigmas(steps)), "native")
    if name.startswith("shift"):
        base = flow_shift(steps, _shift_value(name))
    elif name == "resolution":
        base = resolution_shift(steps, tokens)
    elif name in SPACINGS:
        base = spaced_chain(name, steps, parameterization) if parameterization.discrete else FLOW_SPACINGS[name](steps)
    elif name in ("linear", "native"):
        base = linear(steps)
    else:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(NAMED)}, or shift=VALUE")
    if solver.last_sigma and steps > 1:
        levels = base.array()
        shortened = solver.last_sigma + (1 - solver.last_sigma) * (levels[:-1] - levels[-2]) / (1 - levels[-2])
        return Schedule((*shortened, 0.0), base.name)
    return base


def as_schedule(schedule) -> Schedule:
    """A Schedule from one, from a scheduler with sigmas, or from a list of levels.  Raises ``TypeError`` for a name."""
    if isinstance(schedule, str):
        raise TypeError(
            f"other loops need noise levels, not the name of a schedule, got {schedule!r}; "
            f"those of the name are plan(steps=..., schedule={schedule!r}).schedule"
        )
    if isinstance(schedule, Schedule):
        return schedule
    if hasattr(schedule, "sigmas"):
        return from_scheduler(schedule)
    if not hasattr(schedule, "__iter__"):
        raise TypeError(f"a schedule is a name, a list of noise levels, a Schedule or a scheduler, got {schedule!r}")
    return from_sigmas(schedule)


def _shift_value(name: str) -> float:
    if name == "shift":
        return 3.0
    try:
        return float(name.removeprefix("shift="))
    except ValueError:
        raise ValueError(f"unknown schedule {name!r}; write shift=3") from None
