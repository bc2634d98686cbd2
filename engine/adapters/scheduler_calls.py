"""The network calls that a diffusers scheduler will make, as a schedule and a solver of ours."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..planning.schedule import Schedule
from ..planning.solvers import EULER, HEUN, Solver, velocity_solver


@dataclass(frozen=True)
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

        A scheduler that tells the network times rounded to integers (DPM-Solver and UniPC with flow sigmas do) is taken at the
        level it tells.  Raises ``TypeError`` or ``ValueError`` for a scheduler that is not flow-matching.
        """
        from diffusers import FlowMatchHeunDiscreteScheduler

        name, levels = type(scheduler).__name__, getattr(scheduler, "sigmas", None)
        if levels is None:
            raise TypeError(f"{name} has no sigmas; a flow-matching scheduler is needed")
        heun = isinstance(scheduler, FlowMatchHeunDiscreteScheduler)
        first = scheduler.begin_index or 0
        levels = np.asarray(torch.as_tensor(levels)[first:].cpu(), dtype=np.float64)
        times = np.asarray(scheduler.timesteps[first:].cpu(), dtype=np.float64)
        if heun:  # both calls of a step stand in the list
            levels = np.concatenate([levels[:1], levels[1::2]])
        told = np.concatenate([times[:1], times[1::2]]) if heun else times
        if len(told) != len(levels) - 1:
            raise ValueError(f"{name} makes {len(times)} calls for {len(levels)} noise levels, which is no solver known here")
        difference = np.abs(1000 * levels[:-1] - told).max()
        if levels.max() > 1 or difference > 1:
            raise ValueError(
                f"{name} calls the network at time {told[0]:g} for noise level {levels[0]:g}; a flow-matching scheduler, with "
                "levels in [0, 1] and times 1000 times as large, is needed"
            )
        if difference > 1e-3:  # more than the roundings of fp32
            levels = np.append(told / 1000, levels[-1])
        solver = velocity_solver(HEUN if heun else EULER)
        return cls(scheduler, scheduler.timesteps, first, Schedule(tuple(levels), name), solver)

    def is_current(self, scheduler: Any) -> bool:
        """Whether ``scheduler`` is still in this run: every ``set_timesteps`` makes a new tensor."""
        return (
            scheduler is self.scheduler and scheduler.timesteps is self.timesteps and (scheduler.begin_index or 0) == self.first
        )

    def call(self, timestep: Tensor) -> int:
        """The index of the coming call.  Raises ``ValueError`` if the network is called at another time than the scheduler's.

        timestep [R], what the network was called with; a view of the schedule is not read from the device.
        """
        index = self.scheduler.step_index
        index = self.first if index is None else index
        if not self.first <= index < len(self.timesteps):
            raise ValueError(f"the scheduler has already made all its {len(self.timesteps) - self.first} calls")
        expected = self.timesteps[index]
        if timestep.data_ptr() != expected.data_ptr():
            found = float(timestep.flatten()[0])
            if not np.isclose(found, float(expected), rtol=1e-6, atol=0):
                raise ValueError(
                    f"the transformer is called at timestep {found:g}, and the scheduler is at {float(expected):g}: "
                    "guidance is attached to another pipeline than the one that runs"
                )
        return index - self.first
