"""The scheduler of a pipeline as the solver of a run: rows of ours that do what its steps do, else its own steps."""

import copy
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..planning.ancestral import euler_ancestral, lcm
from ..planning.schedule import Schedule, check_falls, skipped_steps
from ..planning.solver_rows import HostStep, Solver, SolverRow
from ..planning.solvers import EULER, HEUN
from .scheduler_calls import SchedulerCalls


@dataclass(frozen=True, repr=False)
class SchedulerSolver(Solver):
    """A diffusers scheduler: every call leaves the guided velocity in the state, and the scheduler steps from there.

    ``scheduler`` has its timesteps set, as ``options`` say, and begins at call ``first``; every run steps a copy of it.
    ``schedule`` are its levels, which no other may replace.  Noise that its steps draw is the samples' own, of their seeds.
    """

    scheduler: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    first: int = 0
    schedule: Schedule | None = None

    @classmethod
    def of(cls, scheduler: Any, options: Mapping[str, Any], first: int, calls: SchedulerCalls) -> "SchedulerSolver":
        """That of a scheduler whose run has been read."""
        name, own = type(scheduler).__name__, calls.schedule

        def rows(sigmas) -> list[SolverRow]:
            if tuple(sigmas) != own.sigmas:
                raise ValueError(
                    f"{name} steps between its own levels, {own.steps} steps from {own.sigmas[0]:.6g} to {own.sigmas[-1]:.6g}; "
                    "another schedule needs a solver of its own"
                )
            return calls.solver.rows(sigmas)

        return cls(name, rows, scheduler=scheduler, options=options, first=first, schedule=own)

    @classmethod
    def from_record(cls, recorded: Mapping[str, Any]) -> "SchedulerSolver":
        """The solver that :meth:`record` described.  Raises ``ValueError`` for a scheduler that diffusers does not have."""
        scheduler = scheduler_from_config(recorded["config"], "the record")
        options, first = dict(recorded["set_timesteps"]), recorded["first"]
        return cls.of(scheduler, options, first, _set_up(scheduler, options, first))

    def begin(self) -> HostStep:
        return SchedulerSteps(copy.deepcopy(self.scheduler), self.first)

    def first_level(self, sigma: float) -> float:
        return float(self.scheduler.sigmas[self.first])  # the network may be told a rounded one

    def record(self) -> dict[str, Any]:
        """What makes the same scheduler again, and has it begin at the same call."""
        written = getattr(self.scheduler, "to_json_string", None)  # one of diffusers' own
        config = {"_class_name": self.name} if written is None else json.loads(written())
        return {"config": config, "set_timesteps": dict(self.options), "first": self.first}


class SchedulerSteps:
    """The steps of one run, made by a scheduler of its own."""

    def __init__(self, scheduler: Any, first: int):
        self.scheduler, self._times = scheduler, iter(scheduler.timesteps[first:])
        self._draws = itertools.count()

    @torch.no_grad()
    def __call__(self, state: Tensor, velocity: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        """As :class:`.solver_rows.HostStep`."""
        with _NoiseOfTheRun(state.shape, lambda: noise(next(self._draws))):
            return self.scheduler.step(velocity, next(self._times), state, return_dict=False)[0]


class _NoiseOfTheRun(TorchFunctionMode):
    """In the place of PyTorch's generator, for ``randn`` and ``randn_like``: schedulers draw a whole batch from it.

    So a sample does not depend on those beside it, nor on what else draws in this process.
    """

    def __init__(self, shape: torch.Size, draw: Callable[[], Tensor]):
        super().__init__()
        self._shape, self._draw = shape, draw

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in (torch.randn, torch.randn_like):
            return func(*args, **kwargs)
        shape = args[0].shape if func is torch.randn_like else torch.Size(args if isinstance(args[0], int) else args[0])
        if shape != self._shape:
            raise ValueError(f"the scheduler draws noise of shape {tuple(shape)} in a step of samples {tuple(self._shape)}")
        return self._draw().to(kwargs.get("dtype") or torch.float32)


def scheduler_run(scheduler: Any, steps: int, tokens: int, strength: float = 1.0) -> tuple[Schedule, Solver]:
    """The levels and the solver of a run that a pipeline with ``scheduler`` makes, for a latent of ``tokens`` image tokens.

    Rows where they give what the scheduler's steps do, else a :class:`SchedulerSolver`.  ``strength`` leaves the first steps
    out, as image-to-image does.  Raises ``TypeError`` or ``ValueError`` for a scheduler that is not flow-matching.
    """
    scheduler, options = copy.deepcopy(scheduler), _timestep_options(scheduler, steps, tokens)
    first = skipped_steps(steps, strength) * getattr(scheduler, "order", 1)
    calls = _set_up(scheduler, options, first)
    check_falls(calls.schedule, strength)
    rows = rows_of(scheduler)
    return calls.schedule, SchedulerSolver.of(scheduler, options, first, calls) if rows is None else rows


def _set_up(scheduler: Any, options: Mapping[str, Any], first: int) -> SchedulerCalls:
    """Set the timesteps of a scheduler, have it begin at call ``first``, and read the run."""
    name = type(scheduler).__name__
    if getattr(scheduler, "_scale_factors", None):
        raise ValueError(f"{name} has scale factors, which change the size of the latents within a run; set them to None")
    scheduler.set_timesteps(device="cpu", **options)
    begin_at(scheduler, first)
    return SchedulerCalls.of(scheduler)


def begin_at(scheduler: Any, first: int) -> None:
    """Have a run begin at call ``first``.  Raises ``ValueError`` for a scheduler that only begins at the first of all.

    One that is not told looks for its first time, and where times are rounded to the same it begins at the second of them.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    elif first:
        raise ValueError(f"{type(scheduler).__name__} begins every run at its first step: it takes no start but noise")


def rows_of(scheduler: Any) -> Solver | None:
    """The solver whose rows do what the scheduler's steps do; a class derived from one that is known may step otherwise."""
    import diffusers

    kind, config = type(scheduler), getattr(scheduler, "config", {})
    if kind is diffusers.FlowMatchHeunDiscreteScheduler:
        return HEUN
    if kind is diffusers.FlowMatchEulerDiscreteScheduler:
        if not config.get("stochastic_sampling", False):
            return EULER
        return None if config.get("invert_sigmas", False) else lcm()  # which draws down to data only
    if kind is getattr(diffusers, "FlowMatchLCMScheduler", None) and not getattr(scheduler, "_scale_factors", None):
        return lcm()
    if kind is getattr(diffusers, "LTXEulerAncestralRFScheduler", None) and config["s_noise"] == 1 and 0 <= config["eta"] <= 1:
        return euler_ancestral(config["eta"], levels="flow")
    return None


def scheduler_from_config(config: Mapping[str, Any], where: str) -> Any:
    """A diffusers scheduler with noise levels.  Raises ``ValueError``, naming ``where``, for a class that is none."""
    import diffusers

    name = config.get("_class_name")
    kind = getattr(diffusers, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        raise ValueError(f"{where} names the scheduler {name!r}, which diffusers does not have")
    scheduler = kind.from_config(config)
    if not hasattr(scheduler, "sigmas"):
        raise ValueError(f"{where} names the scheduler {name}, which has no noise levels; a flow-matching one is needed")
    return scheduler


def timed_scheduler(scheduler: Any, steps: int, tokens: int) -> Any:
    """A copy of a diffusers scheduler with its timesteps set, for a latent of ``tokens`` image tokens."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(device="cpu", **_timestep_options(scheduler, steps, tokens))
    return scheduler


def _timestep_options(scheduler: Any, steps: int, tokens: int) -> dict[str, Any]:
    """What a pipeline gives to ``set_timesteps``."""
    config = getattr(scheduler, "config", {})
    shift = {"mu": dynamic_shift(config, tokens)} if config.get("use_dynamic_shifting", False) else {}
    return {"num_inference_steps": steps} | shift


def dynamic_shift(config: Mapping[str, Any], tokens: int) -> float:
    """``mu`` of diffusers' dynamic shifting: linear in the number of image tokens."""
    base_tokens, top_tokens = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
    mu = base + (top - base) * (tokens - base_tokens) / (top_tokens - base_tokens)
    if not math.isfinite(mu):
        raise ValueError(f"the scheduler's dynamic shift gives mu = {mu} for {tokens} tokens")
    return mu
