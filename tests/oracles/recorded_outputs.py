"""Runs on recorded network outputs: of a diffusers scheduler, and of the rows of a solver between the same levels.

A solver is linear in the state and the outputs, so random outputs, which know nothing of the state, compare all of it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.engine.planning.solver_rows import Solver
from segue.kernels.combine import solver_update


def scheduler_run(scheduler: Any, state: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """What a scheduler with its timesteps set makes of ``outputs``, one for every call."""
    for time, output in zip(scheduler.timesteps, outputs, strict=True):
        scheduler.scale_model_input(state, time) if hasattr(scheduler, "scale_model_input") else None
        state = scheduler.step(output, time, state, return_dict=False)[0]
    return state


def rows_run(
    solver: Solver,
    sigmas: Sequence[float],
    state: Tensor,
    outputs: Sequence[Tensor],
    noises: Sequence[Tensor] = (),
    noise: bool = False,
) -> Tensor:
    """What the rows make of ``outputs``, in the dtype of ``state``, flow coordinates.

    Outputs are velocities, or noise where ``noise`` is true, ``v = (eps - y) / (1 - sigma)``; ``noises`` are drawn in order.
    """
    rows, drawn, state = solver.rows(np.array(sigmas, dtype=np.float64)), iter(noises), state.clone()
    history, earlier = torch.zeros_like(state), state.new_zeros(len(state), solver.earlier, *state.shape[1:])
    assert len(rows) == len(outputs)
    for row, output in zip(rows, outputs, strict=True):
        assert len(row.earlier) <= solver.earlier
        slope = 1 / (1 - row.sigma) if noise else 0.0
        a, b, e, f = row.a - row.b * slope, row.b * (slope or 1), row.e - row.f * slope, row.f * (slope or 1)
        numbers = [a, b, row.c, row.d, e, f, *row.earlier, *[0.0] * (solver.earlier - len(row.earlier))]
        numbers = torch.tensor([numbers], dtype=state.dtype).expand(len(state), -1)
        drawing = next(drawn) if row.d else None
        solver_update(state, output, history, drawing, numbers, None, earlier if solver.earlier else None)
    return state
