"""Distillation as a task of the trainer: a step draws trajectories, and regresses the adapted network to the guided velocity.

``|v_student(y, t, c) - v_guided(y, t, c)|^2`` at states ``y`` of guided and of its own trajectories.  Source: adapter guidance
distillation (arXiv 2503.07274) for the regression; the student's own states are DAgger's (arXiv 1011.0686).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segue.models.wrapped_modules import unwrapped

from ..task import Drawn, NetworkTask
from .spec import DistillSpec
from .teacher import Teacher
from .trajectories import Velocity, draw_pairs


class Student(Protocol):
    """The network that is trained: what it is called with beside state and time, and how its adapter is kept."""

    def network(self) -> nn.Module:
        """A new student on the CPU or where its network is, its adapter drawn from the default generator."""

    def conditions(self, labels: Tensor, scale: Tensor | None) -> tuple[Tensor, ...]:
        """What the network takes after state and time, for labels [B] and, where it takes one, scale [B]."""

    def write(self, network: nn.Module, path: Path, metadata: Mapping[str, str] | None) -> None:
        """Write the adapter of a student."""


class DistillTask(NetworkTask):
    """One student, one teacher; see :class:`.spec.TrajectorySpec` for the states.

    All of a step depends on what is drawn for it and on the weights then.
    """

    def __init__(self, spec: DistillSpec, teacher: Teacher, student: Student, effects: Sequence[float] = ()):
        """``effects`` are those of :func:`.effects.measured_effects`, for level weights by effect."""
        if spec.trajectories.levels > teacher.calls:
            raise ValueError(f"levels must be at most the {teacher.calls} calls of the plan, got {spec.trajectories.levels}")
        self.spec, self.teacher, self.student = spec, teacher, student
        self.weights = torch.tensor(_level_weights(spec, teacher, effects), dtype=torch.float32)

    def network(self) -> nn.Module:
        return self.student.network()

    def draw(self, x0: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 0.0) -> Drawn:
        """Unit noise x0 [B, C, H, W] and labels [B] as they are, calls [B, k] int64, who leads [B] bool, scale [B].

        The calls are the same for all samples of a step, so that the teacher is asked for whole batches.
        """
        batch, spec = len(x0), self.spec.trajectories
        edges = np.linspace(0, self.teacher.calls, spec.levels + 1)
        parts = torch.rand(spec.levels, generator=generator, dtype=torch.float64).numpy()
        calls = torch.from_numpy((edges[:-1] + parts * np.diff(edges)).astype(np.int64))
        own = self._own(batch, generator)
        low, high = self.spec.adapter.scales or (1.0, 1.0)
        scale = low + (high - low) * torch.rand(batch, generator=generator)
        return x0, labels, calls.expand(batch, -1).contiguous(), own, scale

    def _own(self, batch: int, generator: torch.Generator) -> Tensor:
        """Which samples the student leads, evenly spread; the fraction that is left over is drawn."""
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        marks = torch.arange(batch + 1, dtype=torch.float64) * self.spec.trajectories.own + offset
        return marks.floor().diff() > 0

    def losses(self, model: nn.Module, drawn: Drawn, companion: nn.Module | None = None) -> dict[str, Tensor]:
        """The mean weighted squared error of the velocity at the states of all trajectories."""
        noise, labels, calls, own, scale = drawn
        order = torch.argsort(own, descending=True, stable=True)  # those that the student leads first
        noise, labels, scale = noise[order], labels[order], scale[order]
        led, chosen = int(own.sum()), list(dict.fromkeys(calls[0].tolist()))
        given = scale if self.spec.adapter.scales is not None else None
        kind = noise.device.type
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            rest = slice(led, None)
            pairs = draw_pairs(
                self.teacher.rows,
                self.teacher.start(noise),
                led,
                chosen,
                self.teacher.velocity(labels.tolist(), given),
                self._of_some(labels[rest], None if given is None else given[rest]),
                self._student(unwrapped(model), labels[:led], None if given is None else given[:led]),
            )
        states, targets = pairs.states.flatten(0, 1), pairs.targets.flatten(0, 1)
        every = [call for call in chosen for _ in range(len(noise))]
        conditions = self.student.conditions(labels, given)
        found = self._velocity(
            model, states, every, tuple(part.repeat(len(chosen), *[1] * (part.dim() - 1)) for part in conditions)
        )
        errors = (found - targets).square().flatten(1).mean(1)
        weights = self.weights.to(errors.device)[every]
        plain = (errors.detach().sum() / targets.square().flatten(1).mean(1).sum()).sqrt()
        return {"loss": (errors * weights).mean(), "relative": plain}

    def _of_some(self, labels: Tensor, scale: Tensor | None) -> Velocity | None:
        return self.teacher.velocity(labels.tolist(), scale) if len(labels) else None

    def _student(self, network: nn.Module, labels: Tensor, scale: Tensor | None) -> Velocity:
        conditions = self.student.conditions(labels, scale)
        return lambda state, call: self._velocity(network, state, [call] * len(state), conditions)

    def _velocity(self, model: nn.Module, states: Tensor, calls: Sequence[int], conditions: tuple[Tensor, ...]) -> Tensor:
        """The student's velocity, in the dtype of the states, at states [n, C, H, W] of ``calls``, in flow coordinates."""
        numbers = torch.tensor(self.teacher.convention[calls], dtype=states.dtype, device=states.device)
        time, (scale, m, n) = numbers[:, 0], numbers[:, 1:].T[..., None, None, None]
        output = model(scale * states, time, *conditions)[:, : states.shape[1]].to(states.dtype)
        return m * states + n * output

    def write(self, network: nn.Module, path: Path, header: Mapping[str, str]) -> None:
        self.student.write(network, path, header)


def _level_weights(spec: DistillSpec, teacher: Teacher, effects: Sequence[float]) -> np.ndarray:
    """``[N]``, with mean one."""
    kind, steps = spec.trajectories.weights, np.array([abs(row.b) for row in teacher.rows])
    if kind == "effect" and len(effects) != teacher.calls:
        raise ValueError(f"level weights by effect need the effect of each of {teacher.calls} calls, got {len(effects)}")
    factors = {"effect": np.array(effects) ** 2, "steps": steps**2, "uniform": np.ones_like(steps)}[kind]
    return factors / factors.mean()
