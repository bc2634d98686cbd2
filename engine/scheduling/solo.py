"""A run that shares no forward: it makes its calls between those of the others, by a program of its own."""

from typing import Any

import torch
from torch import Tensor

from ..running.program import Program
from ..running.stopping import StopPoll
from .drawing import Drawing


class SoloRun:
    """One run of ``engine`` by itself; ``reason`` says why."""

    def __init__(self, engine: Any, drawing: Drawing, reason: str):
        self.engine, self.plan, self.reason, self.call = engine, drawing.plan, reason, 0
        start = drawing.start
        state = start.state.to(engine.device, torch.float32)
        self.program: Program = engine.prepare(drawing.plan, start.conditions, [drawing.seed], state)
        self._poll = StopPoll(self.program.combination.stopping) if drawing.plan.adaptive else None

    @property
    def x(self) -> Tensor:
        """The state [1, C, H, W] fp32."""
        return self.program.x

    @property
    def ended(self) -> bool:
        return self.call == self.plan.calls

    def step(self) -> int:
        """Make the next call; returns how many rows its forwards had."""
        planned = self.plan.live[self.call]
        live = planned if self._poll is None else self._poll.live(planned)
        self.program.advance(live)
        self.call += 1
        if self._poll is not None:
            self._poll.after_call()
        return self.plan.call_cost(live)[0]

    def leave(self) -> None:
        """Give the program back; the state stays readable."""
        self.engine.release(self.program)
