"""Combining branches that must stay apart: for directions that later calls reuse, and for corrections with a reduction."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.kernels.record import DIFFERENTIABLE, Kernels

from ..planning.plan import Plan
from ..rules.correction import Correction
from ..rules.guided_corrections import HistoryGuidance
from ..rules.reference_corrections import FrequencyDecoupled, FrequencyScaled, Perpendicular
from ..rules.spectral_refinement import SpectralRefinement
from .call_table import CallTable
from .corrections import REFERENCE, WHOLE, Guided, Numbers, history, perpendicular
from .filters import fourier_part, pyramid_part, raised_part
from .reused_directions import ReusedDirections
from .stopping import StoppingBranches
from .vectors import Span, Vector

FORM = ("clean", "slope", "weight")  # of this call: an output o means the clean estimate clean y + slope o


def correction_rows(plan: Plan) -> np.ndarray:
    """``[N, ...]`` numbers of the corrections of one rule at every call: :data:`FORM`, then those of each in their order."""
    m, n = plan.parameterization.velocity(plan.sigmas)
    weight = np.zeros(plan.calls) if plan.reference is None else plan.weights[:, plan.reference - 1]
    columns = [1 - plan.sigmas * m, -plan.sigmas * n, weight]
    for correction in plan.corrections:
        columns += correction.numbers(plan.call_levels).values()
    return np.stack(columns, axis=1)


def put(tensor: Tensor, values: np.ndarray) -> None:
    """Write ``values`` [B] into a tensor of the device; without waiting for it where all are the same, as in most runs."""
    if (values == values[0]).all():
        tensor.fill_(values[0].item())
    else:
        tensor.copy_(torch.from_numpy(values))


class Combination:
    """The device tables and the memory of one program's rule, fp32: reused directions, and what corrections keep.

    ``memories`` has what each correction keeps from call to call: a state [B, C, H, W] or a number [B] for each sample.
    """

    def __init__(
        self,
        plan: Plan,
        shape: tuple[int, int, int, int],
        table: Callable[[int], CallTable],
        device: torch.device,
        kernels: Kernels,
    ):
        """``table`` makes one of a width; ``shape`` [B, C, H, W] is that of the state."""
        self.kernels, self.reference = kernels, plan.reference
        self.reused = ReusedDirections(plan, shape, table, device, kernels)
        self.stopping = StoppingBranches(plan, shape[0], table, device, kernels)
        self.corrections = plan.corrections  # of which only the kinds matter: their numbers are in the table
        self.perpendicular = any(isinstance(correction, Perpendicular) for correction in self.corrections)
        own = plan.samples[0] if plan.samples else plan
        self.names = [tuple(correction.numbers(own.call_levels)) for correction in own.corrections]
        single: dict[str, Any] = {"dtype": torch.float32, "device": device}
        sizes = {"state": shape, "number": shape[:1]}
        self.memories = {
            i: torch.zeros(sizes[correction.memory], **single)
            for i, correction in enumerate(self.corrections)
            if correction.memory
        }
        averages = any(isinstance(correction, HistoryGuidance) for correction in self.corrections)
        self.begun = torch.zeros(shape[0] if averages else 0, **single)  # 1 where a sample's average holds an estimate
        self.correction_table = table(len(FORM) + sum(map(len, self.names)))

    def load(self, samples: Sequence[Plan]) -> None:
        """Put the numbers of a run into the tables and forget the run before; one plan for all samples, or one for each."""
        self.reused.load(samples)
        self.correction_table.fill([correction_rows(plan) for plan in samples])
        for memory in (*self.reused.memory(), *self.memories.values(), self.begun):
            memory.zero_()
        self.stopping.load(samples)

    def forget(self, samples: np.ndarray, call: Tensor) -> None:
        """Let ``samples`` [B] bool start anew at ``call`` [B] int64: no average, and directions from that call on.

        That call must evaluate the kept branches that weigh something there; for other samples the tables say what it keeps.
        """
        fresh = self.reused.fresh
        put(fresh, samples)
        self.reused.start_anew(call)
        self.stopping.start_anew(fresh)
        if samples.any():
            for memory in (self.reused.directions, *self.memories.values(), self.begun):
                if memory.numel():
                    memory.masked_fill_(fresh if memory.dim() == 1 else fresh[:, None, None, None], 0.0)

    def memory(self) -> tuple[Tensor, ...]:
        """What a call leaves for those after it."""
        return *self.reused.memory(), *self.memories.values(), self.begun, self.stopping.stopped

    def recording(self) -> "Combination":
        """The same tables and memory, combined by functions that have derivatives."""
        recording = copy.copy(self)
        recording.kernels = DIFFERENTIABLE
        return recording

    def combine(self, y: Tensor, outputs: Mapping[int, Tensor], coefficients: Tensor, call: Tensor) -> Tensor:
        """The guided output [B, C, H, W] fp32 at the state ``y`` from the outputs of the live branches, fp32.

        coefficients [B, branches, C'] of this call; call [B] int64.
        """
        conditional = outputs[0]
        self.reused.keep(conditional, outputs, call)
        row = self.correction_table.at(self.kernels, call)
        form, numbers = row[:, : len(FORM)].unbind(1), self._numbers(row)
        corrected = self.reference if self.reference in outputs else None
        others = None
        for i, output in outputs.items():
            if i not in (0, corrected):
                factor = self.stopping.factor(i)
                weight = coefficients[:, i] if factor is None else coefficients[:, i] * factor
                change = weight[:, :, None, None] * (output - conditional)
                others = change if others is None else others + change
        self.stopping.look(conditional, outputs, call)
        if self.reused.kept:
            others = self.reused.added_to(torch.zeros_like(conditional) if others is None else others, call)
        total = self._corrected(y, conditional, outputs.get(corrected), others, form, numbers)
        whole = coefficients.sum(1)  # one, or zero at a silent call
        for i, correction in enumerate(self.corrections):
            if isinstance(correction, HistoryGuidance):
                total = self._with_history(i, y, total, form, numbers[i], whole[:, 0])
            elif isinstance(correction, SpectralRefinement):
                total = _refined(y, total, form, numbers[i])
        return total * whole[:, :, None, None]

    def _numbers(self, row: Tensor) -> list[Numbers]:
        """The numbers of each correction at this call; row [B, ...] of the table."""
        found: list[Numbers] = []
        first = len(FORM)
        for names in self.names:
            found.append(dict(zip(names, row[:, first : first + len(names)].unbind(1), strict=True)))
            first += len(names)
        return found

    def _corrected(
        self,
        y: Tensor,
        conditional: Tensor,
        reference: Tensor | None,
        others: Tensor | None,
        form: Sequence[Tensor],
        numbers: Sequence[Numbers],
    ) -> Tensor:
        """The guided output [B, C, H, W]: of the reference and the other terms, each None where it has none now."""
        whole = [i for i, correction in enumerate(self.corrections) if type(correction) in WHOLE]
        if reference is None and (others is None or not whole):
            return conditional if others is None else conditional + others
        acting = [] if reference is None else [i for i, own in enumerate(self.corrections) if type(own) in REFERENCE]
        states = {"conditional": conditional}
        if reference is not None:
            states["reference"] = reference
        if others is not None:
            states["others"] = others
        if any(self.corrections[i].space == "x0" for i in acting):
            states["state"] = y
        for i in acting:
            if isinstance(self.corrections[i], FrequencyDecoupled | FrequencyScaled):
                states[f"low {i}"] = _low(self.corrections[i], conditional - reference, numbers[i])
            if self.corrections[i].memory == "state":
                # a graph of autograd holds what it read, and the memory is written after
                states[f"memory {i}"] = self.memories[i].clone() if torch.is_grad_enabled() else self.memories[i]
        place = {name: k for k, name in enumerate(states)}
        span = Span(self.kernels, tuple(states.values()), (1,) if reference is not None else ())
        c = g = span.unit(0)
        written: dict[int, Vector] = {}
        if reference is not None:
            g, written = self._referred(span, place, acting, form, numbers)
        if others is not None:
            added = span.unit(place["others"])
            if reference is not None and self.perpendicular:
                added = perpendicular(added, span.unit(1)).where(form[2] != 0, added)
            g = g + added
        for i in whole:
            g = WHOLE[type(self.corrections[i])](g, c, numbers[i])
        total, *kept = span.written(g, *written.values())
        for i, state in zip(written, kept, strict=True):
            self.memories[i].copy_(state.detach())
        return total

    def _referred(
        self, span: Span, place: Mapping[str, int], acting: Sequence[int], form: Sequence[Tensor], numbers: Sequence[Numbers]
    ) -> tuple[Vector, dict[int, Vector]]:
        """The conditional output with its corrected direction, and the states that corrections keep of it."""
        clean, slope, weight = form
        weighs = weight != 0  # the reference may be live for other samples alone
        c, state = span.unit(0), span.unit(place["state"]) if "state" in place else None
        guided, written = Guided(c, span.unit(1), weight, state, clean, slope), {}
        for i in acting:
            if f"low {i}" in place:
                guided = replace(guided, low=span.unit(place[f"low {i}"]))
            memory: Any = span.unit(place[f"memory {i}"]) if f"memory {i}" in place else self.memories.get(i)
            guided, left = REFERENCE[type(self.corrections[i])](guided, numbers[i], memory)
            if isinstance(left, Vector):
                written[i] = left.where(weighs, memory)
            elif left is not None:
                self.memories[i].copy_(torch.where(weighs, left, memory).detach())
        return (c + guided.weight * guided.direction).where(weighs, c), written

    def _with_history(
        self, i: int, y: Tensor, total: Tensor, form: Sequence[Tensor], numbers: Numbers, whole: Tensor
    ) -> Tensor:
        """The guided output pushed away from the estimates of the calls before, but for silent ones: ``whole`` [B] is 0."""
        clean, slope = (number[:, None, None, None] for number in form[:2])
        estimate = torch.addcmul(clean * y, slope, total)
        change, average = history(self.kernels, estimate, self.memories[i], self.begun, numbers)
        self.memories[i].copy_(torch.where(whole[:, None, None, None] == 0, self.memories[i], average.detach()))
        self.begun.copy_(torch.maximum(self.begun, whole))
        return total + change / torch.where(slope == 0, 1.0, slope)


def _refined(y: Tensor, total: Tensor, form: Sequence[Tensor], numbers: Numbers) -> Tensor:
    """The guided output whose clean estimate has its high frequencies raised; to the bit as it is where beta is 0."""
    clean, slope = (number[:, None, None, None] for number in form[:2])
    change = raised_part(torch.addcmul(clean * y, slope, total), numbers["beta"], numbers["cutoff"])
    return total + change / torch.where(slope == 0, 1.0, slope)


def _low(correction: Correction, direction: Tensor, numbers: Numbers) -> Tensor:
    """The low frequencies of a direction [B, C, H, W] as a correction cuts them."""
    if isinstance(correction, FrequencyDecoupled):
        return pyramid_part(direction, correction.levels)
    return fourier_part(direction, numbers["cutoff"])
