"""A run that shares no forward: it makes its calls between those of the others, by a program of its own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from segue.models.modulation_table import ModulationTable

from ..planning.plan import Plan
from ..planning.solver_rows import HostStep
from ..rules.drawn import Draw
from ..running.program import Program
from ..running.program_key import ProgramKey
from ..running.stopping import StopPoll
from .clean_estimate import unit_noise
from .drawing import Drawing
from .memory import bytes_of, passed_on


class SoloRun:
    """One run of ``engine`` by itself; ``reason`` says why, and ``taken`` are the bytes of its program."""

    def __init__(self, engine: Any, drawing: Drawing, reason: str, taken: int):
        self.engine, self.plan, self.reason, self.taken, self.call = engine, drawing.plan, reason, taken, 0
        self.seed, start = drawing.seed, drawing.start
        state = start.state.to(engine.device, torch.float32)
        self.program: Program = engine.prepare(drawing.plan, start.conditions, [drawing.seed], state)
        self._poll = StopPoll(self.program.combination.stopping) if drawing.plan.adaptive else None
        self._heard: _HeardStep | None = None
        if self.program.host_step is not None:
            self.program.host_step = self._heard = _HeardStep(self.program.host_step)

    @staticmethod
    def memory_of(engine: Any, plan: Plan) -> int:
        """The bytes that a program of its own takes for a run: its states, its rows with what their blocks pass on, its tables.

        Counted from the sizes, for a program may load a classifier while it is made.
        """
        key, every = ProgramKey.of(plan, 1), tuple(range(len(plan.branches)))
        state = 4 * plan.spec.channels * plan.height * plan.width
        total = state * (2 + plan.earlier + len(plan.kept) * plan.places + len(plan.corrections))
        element = engine.dtype.itemsize
        for name in plan.models(every):
            network, layout = engine.models[name], plan.layout(every, name)
            spec, rows = network.spec, len(layout.blocks)
            tokens = rows * spec.tokens(plan.height, plan.width) + sum(layout.texts) * key.text_tokens
            total += spec.dim * tokens * element + passed_on(spec, tokens, element)
            total += spec.dim * _prompts(plan) * key.text_tokens * element
            total += 2 * state * rows  # outputs, one by one and as patches
            if (width := getattr(network, "modulation_width", 0)) > 0:  # modules of another library compute theirs
                like = torch.empty(0, dtype=engine.dtype)
                table = partial(ModulationTable, like, width, key.calls, key.conditions, len(plan.conditions), 1)
                total += bytes_of(table) + (rows + 1) * width * element
        return total

    @property
    def x(self) -> Tensor:
        """The state [1, C, H, W] fp32."""
        return self.program.x

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """What the solver's rows left for the next one."""
        return self.program.memory()

    @property
    def velocity(self) -> Tensor | None:
        """That of the last call [1, C, H, W] fp32, where the solver's steps are made on the host."""
        return None if self._heard is None else self._heard.velocity

    def noise(self, call: int) -> Tensor:
        """That of a call's step, where the last call is it, [1, C, H, W] fp32."""
        noise = unit_noise(self.program.kernels, self.seed, call, self.x)
        if not self.plan.learned_variance:
            return noise
        return noise * torch.exp(float(self.plan.spreads[call, 0]) * (self.program.rows["main"].variance + 1) / 2)

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

    def leave(self, keep: bool) -> None:
        """Let go of the program; the state stays readable.  ``keep``: the engine has it for a later run."""
        if keep:
            self.engine.release(self.program)


class _HeardStep:
    """A step on the host that keeps a copy of the velocity it is made of."""

    def __init__(self, step: HostStep):
        self._step = step
        self.velocity: Tensor | None = None

    def __call__(self, state: Tensor, velocity: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        self.velocity = velocity.clone()  # which is the step's, to write into
        return self._step(state, velocity, noise)


def _prompts(plan: Plan) -> int:
    """How many prompts rows begin from: one of each condition, and those of all classes that one is drawn from."""
    classes = (condition.classes for condition in plan.conditions if isinstance(condition, Draw))
    return len(plan.conditions) + sum(len(own.names) for own in classes if own is not None)
