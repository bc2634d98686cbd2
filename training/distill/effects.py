"""How far an error of the velocity at a call moves the end of a trajectory: measured on the teacher, before the first step."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .teacher import Teacher
from .trajectories import Integration

MEASURED = 8  # calls, evenly spread; between them the effect of a step's length is known, and the rest is interpolated
SAMPLES = 8
SMALL = 0.01  # of the guided velocity, the error to begin with where the rule does not act


@torch.no_grad()
def measured_effects(
    teacher: Teacher, noise: Tensor, labels: Sequence[int], advance: Callable[[], None] = lambda: None
) -> tuple[float, ...]:
    """For every call, by how much the end moves for an error of length one: the root mean square over the samples.

    The error is that which a student begins with, the unguided velocity instead of the guided one; the rest of the way is the
    teacher's.  noise [B, C, H, W]; ``advance`` is called once for every of :func:`measured_calls`.
    """
    guided, plain = teacher.velocity(labels), teacher.unguided(labels)
    run, begun = Integration(teacher.rows, teacher.start(noise)), {}
    measured = measured_calls(teacher.calls)
    for call in range(teacher.calls):
        velocity = guided(run.state, call)
        if call in measured:
            begun[call] = copy.copy(run), velocity, _error(velocity, plain(run.state, call))
        run.step(call, velocity)
    gains = []
    for call, (fork, velocity, error) in begun.items():
        fork.step(call, velocity + error)
        for later in range(call + 1, teacher.calls):
            fork.step(later, guided(fork.state, later))
        moved = (_length(fork.state - run.state) / _length(error)).square().mean().sqrt()
        gains.append(moved.item() / max(abs(teacher.rows[call].b), 1e-12))
        advance()
    steps = np.array([abs(row.b) for row in teacher.rows])
    return tuple((np.interp(np.arange(teacher.calls), measured, gains) * steps).tolist())


def measured_calls(calls: int) -> list[int]:
    """The calls at which the effect is measured."""
    return sorted({round(call) for call in np.linspace(0, calls - 1, min(MEASURED, calls))})


def _error(guided: Tensor, plain: Tensor) -> Tensor:
    """What a student is wrong by at the start; somewhere to go where that is nothing."""
    error = plain - guided
    silent = _length(error) <= 1e-6 * _length(guided)
    return torch.where(silent.view(-1, 1, 1, 1), SMALL * guided, error)


def _length(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).norm(dim=1)
