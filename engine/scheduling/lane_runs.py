"""A run in a lane: where it is, and whose work its step is, its own program's or that of all linear runs together."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segue.kernels.record import Kernels

from ..running.program import Program
from ..running.program_key import ProgramKey
from ..running.stopping import StopPoll
from .clean_estimate import unit_noise
from .drawing import Drawing
from .linear_steps import LinearStep, LinearSteps


class LaneRun:
    """One run in a lane, at its ``place`` among the ``states`` [places, C, H, W]."""

    velocity: Tensor | None = None  # of no call: it stays inside the step

    def __init__(self, drawing: Drawing, place: int, states: Tensor, kernels: Kernels):
        self.plan, self.seed, self.kernels, self.place, self.call = drawing.plan, drawing.seed, kernels, place, 0
        self.x = states[place : place + 1]
        self.x.copy_(drawing.start.state.to(states.device, torch.float32))

    @property
    def live(self) -> tuple[int, ...]:
        """The branches that the next call needs."""
        return self.plan.live[self.call]

    @property
    def ended(self) -> bool:
        return self.call == self.plan.calls

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """What the solver's rows left for the next one, of this run alone."""
        raise NotImplementedError

    def noise(self, call: int) -> Tensor:
        """That of a call's step, [1, C, H, W] fp32."""
        return unit_noise(self.kernels, self.seed, call, self.x)

    def leave(self) -> None:
        """The place is for others: what the run came to stays with it."""
        place, self.x = self.x, self.x.clone()
        place.zero_()  # rows of nobody, too, shall be finite


class LinearRun(LaneRun):
    """A run whose rule is a sum with known numbers: its steps are made with those of the others."""

    def __init__(self, drawing: Drawing, place: int, states: Tensor, steps: LinearSteps):
        super().__init__(drawing, place, states, steps.kernels)
        self._coefficients, self._steps = drawing.plan.coefficients(), steps

    @property
    def memory(self) -> tuple[Tensor, ...]:
        own = slice(self.place, self.place + 1)
        return self._steps.history[own], self._steps.earlier[own]

    def step(self, outputs: Sequence[int]) -> LinearStep:
        """The coming step, of the branches with an output that were read at ``outputs``."""
        plan, call = self.plan, self.call
        read = dict(zip(plan.outputs(self.live), outputs, strict=True))
        return LinearStep(self.place, call, self.seed, plan.table[call, 1:], self._coefficients[call], read, plan.stochastic)


class ProgramRun(LaneRun):
    """A run with a program of its own, which evaluates no branches itself: corrections, kept directions, further networks."""

    def __init__(self, drawing: Drawing, place: int, states: Tensor, kernels: Kernels):
        super().__init__(drawing, place, states, kernels)
        plan = drawing.plan
        self.program = Program(ProgramKey.of(plan, 1), plan, {}, states.device, kernels)
        self.program.load(plan, self.x, drawing.start.conditions, [drawing.seed])
        self.program.x = self.x  # where its rows begin from
        self._poll = StopPoll(self.program.combination.stopping) if plan.adaptive else None

    @property
    def live(self) -> tuple[int, ...]:
        planned = super().live
        return planned if self._poll is None else self._poll.live(planned)

    @property
    def memory(self) -> tuple[Tensor, ...]:
        return self.program.memory()

    def step(self, outputs: Mapping[int, Tensor]) -> None:
        """Make the coming step of the outputs [1, C, H, W] fp32 of the live branches."""
        self.program.step_with(outputs)
        if self._poll is not None:
            self._poll.after_call()
