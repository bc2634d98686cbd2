"""The clean estimate of a call of a run, read from the step that was made of it: for pictures of what is under way.

The network's guided output ``o`` is gone after a captured step.  But the step was
``x' = a x + b o + c h + d z + sum_k g_k h_k`` and left ``h' = e x + f o``, of which all else is known; with ``v = m x + n o``
the estimate is ``x - sigma v``.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from segue.kernels.record import Kernels

from ..planning.plan import Plan

MOST_GAIN = 1e5  # of fp32's roundings, 6e-8 of a state: a level of a picture is 8e-3


class Stepping(Protocol):
    """A run of one sample.  ``x`` is its state [1, C, H, W] fp32, and ``memory`` what the solver's rows left.

    That is the previous one's [1, C, H, W] and, for solvers that look further back, what those before it left [1, E, C, H, W].
    ``velocity``: that of the last call, where the run knows it.
    """

    plan: Plan
    call: int

    @property
    def x(self) -> Tensor: ...

    @property
    def memory(self) -> tuple[Tensor, ...]: ...

    @property
    def velocity(self) -> Tensor | None: ...

    def noise(self, call: int) -> Tensor:
        """What the row of a call, which is made, multiplies by its ``d``."""


class CleanEstimate:
    """That of the coming call of ``run``: made before the call, asked for after it."""

    def __init__(self, run: Stepping):
        self._run, self._call, self._state = run, run.call, run.x.clone()
        self._memory = [tensor.clone() for tensor in run.memory]

    @torch.no_grad()
    def tensor(self) -> Tensor | None:
        """The estimate [1, C, H, W] fp32; None where the call has none: its velocity was not asked for, or led nowhere."""
        plan, call, x = self._run.plan, self._call, self._state
        if plan.silent[call]:
            return None
        sigma = float(plan.sigmas[call])
        if (velocity := self._run.velocity) is not None:
            return x - sigma * velocity
        m, n = (float(factor[0]) for factor in plan.parameterization.velocity(plan.sigmas[call : call + 1]))
        b, e, f = (float(plan.table[call, column]) for column in (2, 5, 6))
        by_state = abs(b) >= abs(f)
        factor = b if by_state else f
        if abs(sigma * n) > MOST_GAIN * abs(factor):
            return None
        weighed = self._added() if by_state else self._run.memory[0] - e * x  # b o, or f o
        return (1 - sigma * m) * x - (sigma * n / factor) * weighed

    def _added(self) -> Tensor:
        """``b o`` of the step: the state after it, without all else that it is made of."""
        _, a, _, c, d, _, _, *further = self._run.plan.table[self._call].tolist()
        history, *earlier = self._memory
        added = self._run.x - a * self._state - c * history
        if d:
            added -= d * self._run.noise(self._call)
        for k, g in enumerate(further):
            added -= g * earlier[0][:, k]
        return added


def unit_noise(kernels: Kernels, seed: int, call: int, state: Tensor) -> Tensor:
    """The noise of a call of a run of this seed, as its step drew it: of the shape of ``state`` [1, C, H, W]."""
    bits = np.array([seed], dtype=np.uint64).view(np.int64)
    seeds, calls = torch.from_numpy(bits).to(state.device), torch.full((1,), call, device=state.device)
    return kernels.normal_noise(seeds, calls, state[0].numel()).view_as(state)
