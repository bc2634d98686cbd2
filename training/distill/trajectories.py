"""Trajectories of a teacher and of its student, and the guided velocity at their states: what an adapter learns from.

Source of the states: a student that follows its own errors must learn where these lead (DAgger, arXiv 1011.0686).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segue.engine.planning.solver_rows import Solver, SolverRow

Velocity = Callable[[Tensor, int], Tensor]
"""``(state [n, C, H, W], call) -> velocity [n, C, H, W]`` in flow coordinates."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """States [k, B, C, H, W] at k calls of B trajectories, and the guided velocity there; fp32."""

    states: Tensor
    targets: Tensor


def solver_rows(solver: Solver, sigmas: Sequence[float]) -> tuple[SolverRow, ...]:
    """The rows of a solver that a student can be trained along: one call a step, no noise.

    Raises ``ValueError`` for any other: its calls are no states of one trajectory.
    """
    levels = np.asarray(sigmas, dtype=np.float64)
    if solver.stochastic or solver.begin() is not None:
        raise ValueError(f"distillation follows a solver without noise whose steps are known before, got {solver.name!r}")
    rows = tuple(solver.rows(levels))
    if len(rows) != len(levels) - 1:
        raise ValueError(
            f"distillation follows a solver of one call a step, and {solver.name!r} makes {len(rows)} calls "
            f"in {len(levels) - 1} steps"
        )
    return rows


class Integration:
    """One trajectory, step by step: ``state`` [n, C, H, W], and what earlier calls left for the solver."""

    def __init__(self, rows: Sequence[SolverRow], state: Tensor):
        self.rows, self.state = rows, state
        self.left: list[Tensor] = []  # by the calls so far, the latest first
        self._depth = 1 + max(len(row.earlier) for row in rows)

    def step(self, call: int, velocity: Tensor) -> None:
        """Make the step of ``call`` with its velocity."""
        row = self.rows[call]
        state = row.a * self.state + row.b * velocity
        for factor, left in zip((row.c, *row.earlier), self.left, strict=False):
            if factor:
                state = state + factor * left
        self.left = [row.e * self.state + row.f * velocity, *self.left][: self._depth]
        self.state = state


@torch.no_grad()
def draw_pairs(
    rows: Sequence[SolverRow],
    start: Tensor,
    own: int,
    calls: Sequence[int],
    teacher: Velocity,
    driving: Velocity | None,
    student: Velocity | None,
) -> Pairs:
    """Integrate B trajectories up to the last of ``calls``: the first ``own`` by the student, the others by the teacher.

    start [B, C, H, W] is the state at the first level.  ``teacher`` gives the guided velocity of all B, ``driving`` that of
    the last ``B - own``, ``student`` that of the first ``own``; None where there are none of these.
    """
    run, states, targets = Integration(rows, start), [], []
    for call in range(max(calls) + 1):
        guided = None
        if call in calls:
            guided = teacher(run.state, call)
            states.append(run.state)
            targets.append(guided)
        if call == max(calls):
            break
        parts = []
        if own and student is not None:
            parts.append(student(run.state[:own], call))
        if guided is not None:
            parts.append(guided[own:])
        elif own < len(start) and driving is not None:
            parts.append(driving(run.state[own:], call))
        run.step(call, torch.cat(parts))
    return Pairs(torch.stack(states), torch.stack(targets))
