"""The network calls that a diffusers scheduler will make, as a schedule and a solver of ours."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..planning.schedule import Schedule, scheduler_sigmas
from ..planning.solver_rows import Solver
from ..planning.solvers import EULER, HEUN, velocity_solver

TIMES_PER_LEVEL = 1000  # what the networks were trained on


@dataclass(frozen=True, eq=False)
class SchedulerCalls:
    """The run that a scheduler was set up for; call 0 is at index ``first`` of its ``timesteps``."""

    scheduler: Any
    timesteps: Tensor
    first: int
    schedule: Schedule
    solver: Solver

    @classmethod
    def of(cls, scheduler: Any) -> "SchedulerCalls":
        """Read a scheduler after ``set_timesteps``: its noise levels as they are, from where the run begins.

        A scheduler that tells the network other times than those of its levels (DPM-Solver and UniPC round them to integers,
        custom timesteps are not shifted) is taken at the levels it tells.  Raises ``TypeError`` or ``ValueError`` for a
        scheduler that is not flow-matching, or whose timesteps are not set.
        """
        from diffusers import FlowMatchHeunDiscreteScheduler

        name, heun = type(scheduler).__name__, isinstance(scheduler, FlowMatchHeunDiscreteScheduler)
        whole = np.asarray(torch.as_tensor(scheduler_sigmas(scheduler)).cpu(), dtype=np.float64)
        first = _first_call(scheduler)
        levels, times = whole[first:], np.asarray(scheduler.timesteps[first:].cpu(), dtype=np.float64)
        if heun:  # both calls of a step stand in the list
            levels = np.concatenate([levels[:1], levels[1::2]])
        told = np.concatenate([times[:1], times[1::2]]) if heun else times
        if len(told) != len(levels) - 1:
            raise ValueError(f"{name} makes {len(times)} calls for {len(levels)} noise levels, which is no solver known here")
        if not _is_flow(scheduler, whole, levels, told):
            raise ValueError(
                f"{name} calls the network at time {told[0]:g} for noise level {levels[0]:g}; a flow-matching scheduler, with "
                f"levels in [0, 1] and times {TIMES_PER_LEVEL} times as large, is needed"
            )
        called = levels[:-1]
        if np.abs(TIMES_PER_LEVEL * called - told).max() > 1e-3:  # more than the roundings of fp32
            called = told / TIMES_PER_LEVEL
        way = (whole[-2] - whole[0]) or (whole[-1] - whole[0])  # of all its levels, as one call tells none
        schedule = Schedule((*called, _end(called, levels[-1], rises=way > 0)), name)
        return cls(scheduler, scheduler.timesteps, first, schedule, velocity_solver(HEUN if heun else EULER))

    def is_current(self, scheduler: Any) -> bool:
        """Whether ``scheduler`` is still in this run: every ``set_timesteps`` makes a new tensor."""
        return scheduler is self.scheduler and scheduler.timesteps is self.timesteps and _first_call(scheduler) == self.first

    def call(self, timestep: Tensor) -> int:
        """The index of the coming call.  Raises ``ValueError`` if the network is called at another time than the scheduler's.

        timestep [R], what the network was called with; a view of the schedule is not read from the device.
        """
        index = self.scheduler.step_index
        index = self.first if index is None else index
        if not self.first <= index < len(self.timesteps):
            raise ValueError(
                f"the scheduler has already made all its {len(self.timesteps) - self.first} calls: "
                "call its set_timesteps before another run"
            )
        expected = self.timesteps[index]
        if timestep.data_ptr() != expected.data_ptr():
            found = float(timestep.flatten()[0])
            rounding = torch.finfo(timestep.dtype).eps if timestep.is_floating_point() else 0.0
            if not np.isclose(found, float(expected), rtol=max(1e-6, rounding), atol=0):
                raise ValueError(
                    f"the transformer is called at timestep {found:g}, and the scheduler is at {float(expected):g}: another "
                    "pipeline runs, or a loop that does not follow this scheduler; the denoiser of an Engine takes any level"
                )
        return index - self.first


def _first_call(scheduler: Any) -> int:
    """The index of the first call of the run; a scheduler without ``begin_index`` begins at 0."""
    return getattr(scheduler, "begin_index", None) or 0


def _is_flow(scheduler: Any, whole: np.ndarray, levels: np.ndarray, told: np.ndarray) -> bool:
    """Whether a scheduler with sigmas ``whole``, of which ``levels`` are run and ``told`` as times, is flow-matching."""
    scale = getattr(scheduler, "config", {}).get("num_train_timesteps", TIMES_PER_LEVEL)
    within = whole.max() <= 1 and told.min() >= 0 and told.max() <= TIMES_PER_LEVEL
    opposite = (told[-1] - told[0]) * (levels[-2] - levels[0]) < 0
    return bool(scale == TIMES_PER_LEVEL and within and not opposite)


def _end(called: np.ndarray, last: float, rises: bool) -> float:
    """The level after those ``called``, where the network is not called: ``last``, unless it lies the other way.

    A scheduler may append 0 to levels that rise, or the least level of a table of variances to levels already below it.
    """
    return max(called[-1], last) if rises else min(called[-1], last)
