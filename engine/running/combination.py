"""Combining branches that must stay apart: for directions that later calls reuse, and for corrections with a reduction."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.kernels.record import DIFFERENTIABLE, Kernels

from ..planning.plan import Plan
from ..rules.correction import AdaptiveProjection, OptimizedScale, RescaledDeviation
from .call_table import CallTable
from .reused_directions import ReusedDirections
from .stopping import StoppingBranches

CORRECTION_COLUMNS = ("state", "output", "scale", "phi", "momentum", "radius", "eta")  # x0 = state y + output o
WITHOUT_CORRECTION = [float(column == "scale") for column in CORRECTION_COLUMNS]  # of a sample whose run is over


def correction_rows(plan: Plan) -> np.ndarray:
    """``[N, 7]`` numbers of the correction of one rule at every call, see :data:`CORRECTION_COLUMNS`."""
    correction, rows = plan.correction, np.zeros((plan.calls, len(CORRECTION_COLUMNS)))
    m, n = plan.parameterization.velocity(plan.sigmas)
    rows[:, 0], rows[:, 1] = 1 - plan.sigmas * m, -plan.sigmas * n
    if plan.reference is not None:
        rows[:, 2] = 1 + plan.weights[:, plan.reference - 1]
    for column, name in enumerate(CORRECTION_COLUMNS[3:], start=3):
        rows[:, column] = getattr(correction, name, 0.0)
    return rows


def put(tensor: Tensor, values: np.ndarray) -> None:
    """Write ``values`` [B] into a tensor of the device; without waiting for it where all are the same, as in most runs."""
    if (values == values[0]).all():
        tensor.fill_(values[0].item())
    else:
        tensor.copy_(torch.from_numpy(values))


class Combination:
    """The device tables and the memory of one program's rule: reused directions and ``average`` [B, C, H, W] fp32."""

    def __init__(
        self,
        plan: Plan,
        shape: tuple[int, int, int, int],
        table: Callable[[int], CallTable],
        device: torch.device,
        kernels: Kernels,
    ):
        """``table`` makes one of a width; ``shape`` [B, C, H, W] is that of the state."""
        self.kernels, self.kept, self.reference = kernels, plan.kept, plan.reference
        self.reused = ReusedDirections(plan, shape, table, device, kernels)
        self.stopping = StoppingBranches(plan, shape[0], table, device, kernels)
        self.kind = type(plan.correction)
        single: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.average = torch.zeros(shape if self.kind is AdaptiveProjection else 0, **single)
        self.fresh = torch.zeros(shape[0], dtype=torch.bool, device=device)  # see forget
        self.correction_table = table(len(CORRECTION_COLUMNS))

    def load(self, samples: Sequence[Plan]) -> None:
        """Put the numbers of a run into the tables and forget the run before; one plan for all samples, or one for each."""
        self.reused.load(samples)
        self.correction_table.fill([correction_rows(plan) for plan in samples], beyond=WITHOUT_CORRECTION)
        self.fresh.zero_()
        for memory in (*self.reused.memory(), self.average):
            memory.zero_()
        self.stopping.load(samples)

    def forget(self, samples: np.ndarray, call: Tensor) -> None:
        """Let ``samples`` [B] bool start anew at ``call`` [B] int64: no average, and directions from that call on.

        That call must evaluate the kept branches that weigh something there; for other samples the tables say what it keeps.
        """
        put(self.fresh, samples)
        self.reused.start_anew(self.fresh, call)
        self.stopping.start_anew(self.fresh)
        if samples.any():
            for memory in (self.reused.directions, self.average):
                if memory.numel():
                    memory.masked_fill_(self.fresh[:, None, None, None], 0.0)

    def memory(self) -> tuple[Tensor, ...]:
        """What a call leaves for those after it."""
        return *self.reused.memory(), self.average, self.stopping.stopped

    def recording(self) -> "Combination":
        """The same tables and memory, combined by functions that have derivatives."""
        recording = copy.copy(self)
        recording.kernels = DIFFERENTIABLE
        recording.reused = copy.copy(self.reused)
        recording.reused.kernels = DIFFERENTIABLE
        return recording

    def combine(self, y: Tensor, outputs: Mapping[int, Tensor], coefficients: Tensor, call: Tensor) -> Tensor:
        """The guided output [B, C, H, W] fp32 at the state ``y`` from the outputs of the live branches, fp32.

        coefficients [B, branches, C'] of this call; call [B] int64.
        """
        conditional = outputs[0]
        self.reused.keep(conditional, outputs, call)
        numbers = self.correction_table.at(self.kernels, call)  # [B, 7]
        corrected = self.reference if self.reference in outputs else None
        total = conditional if corrected is None else self._corrected(y, conditional, outputs[corrected], numbers)
        for i, output in outputs.items():
            if i not in (0, corrected):
                factor = self.stopping.factor(i)
                weight = coefficients[:, i] if factor is None else coefficients[:, i] * factor
                total = torch.addcmul(total, weight[:, :, None, None], output - conditional)
        self.stopping.look(conditional, outputs, call)
        total = self.reused.added_to(total, call)
        if self.kind is RescaledDeviation:
            total = self.kernels.rescale(total, conditional, numbers[:, 3])
        return total * coefficients.sum(1)[:, :, None, None]  # one, or zero at a silent call

    def _corrected(self, y: Tensor, conditional: Tensor, reference: Tensor, numbers: Tensor) -> Tensor:
        """The conditional output and its corrected difference from the reference."""
        state, output, scale, _, momentum, radius, eta = numbers.unbind(1)
        if self.kind is OptimizedScale:
            return self.kernels.cfg_zero_star(conditional, reference, scale)
        state, output = state[:, None, None, None], output[:, None, None, None]
        clean = [torch.addcmul(state * y, output, prediction) for prediction in (conditional, reference)]
        average = self.average.clone()
        guided = self.kernels.adaptive_projection(*clean, average, scale, momentum, radius, eta)
        weighs = (scale != 1)[:, None, None, None]  # the reference may be live for other samples alone
        self.average.copy_(torch.where(weighs, average, self.average).detach())
        # at level 0, where a correction has no weight, output is 0: not divided by, so that gradients stay finite too
        return torch.where(weighs, (guided - state * y) / torch.where(weighs, output, 1.0), conditional)
