"""The directions ``c - k`` that a program keeps from the calls that compute them, for calls that extrapolate them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from segue.kernels.record import Kernels

from ..planning.plan import Plan
from .call_table import CallTable


class ReusedDirections:
    """Memory and device tables of the kept branches: ``directions`` [kept, places, B, C, H, W] fp32.

    Where each sample's own table says, by its own call; a sample that starts anew in the middle of a run (see
    :meth:`start_anew`) holds its last direction until all that its table extrapolates were computed since.
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
        self.kernels, self.kept, self.places = kernels, plan.kept, plan.places
        kept, places = len(plan.kept), plan.places
        self.directions = torch.zeros(kept, places, *shape, dtype=torch.float32, device=device)
        # the call at which a sample started: of no use where a direction is held as it is
        self.since = torch.zeros(shape[0] if kept and places > 1 else 0, dtype=torch.int64, device=device)
        self.fresh = torch.zeros(shape[0], dtype=torch.bool, device=device)  # which samples start anew at the coming call
        self.weight_table = table(kept * places * plan.reused_channels)
        self.evaluated_table = table(kept)  # 1 where a call evaluates a kept branch
        self.place_table = table(kept * places if places > 1 else 0)  # 1 at the place of the newest direction
        self.oldest_table = table(kept if places > 1 else 0)  # the first call that an extrapolation goes back to

    def load(self, samples: Sequence[Plan]) -> None:
        """Put the numbers of a run into the tables; one plan for all samples, or one for each."""
        kept = [i - 1 for i in self.kept]
        self.weight_table.fill([plan.reused_weights()[:, kept].reshape(plan.calls, -1) for plan in samples])
        self.evaluated_table.fill([plan.evaluated[:, kept] for plan in samples])
        if self.places > 1:
            newest = [np.eye(self.places)[plan.reuse.place[:, kept]] for plan in samples]
            self.place_table.fill([ones.reshape(len(ones), -1) for ones in newest])
            self.oldest_table.fill([plan.reuse.oldest[:, kept] for plan in samples])
        self.fresh.zero_()

    def start_anew(self, call: Tensor) -> None:
        """The samples that are ``fresh`` know no directions but those that are computed from their ``call`` [B] int64 on."""
        if self.since.numel():
            self.since.copy_(torch.where(self.fresh, call, self.since))

    def memory(self) -> tuple[Tensor, ...]:
        """What a call leaves for those after it."""
        return self.directions, self.since

    def keep(self, conditional: Tensor, outputs: Mapping[int, Tensor], call: Tensor) -> None:
        """Keep the directions of the samples whose own call evaluates a branch; it may be live for others alone."""
        if not any(branch in outputs for branch in self.kept):
            return
        evaluated = self.evaluated_table.at(self.kernels, call)  # [B, kept]
        renewed = ((evaluated > 0) | self.fresh[:, None])[:, :, None]  # [B, kept, places]
        if self.places > 1:
            renewed = renewed & (self._newest(call) > 0)
        for k, branch in enumerate(self.kept):
            if branch in outputs:
                new = (conditional - outputs[branch]).detach()
                for place, direction in enumerate(self.directions[k]):
                    direction.copy_(torch.where(renewed[:, k, place, None, None, None], new, direction))

    def added_to(self, total: Tensor, call: Tensor) -> Tensor:
        """``total`` [B, C, H, W] plus the directions of branches that do not run now."""
        if not self.kept:
            return total
        weights = self.weight_table.at(self.kernels, call).unflatten(1, (len(self.kept), self.places, -1))
        if self.places > 1:
            held = weights.sum(2, keepdim=True) * self._newest(call)[..., None]  # coefficients sum to one
            known = self.oldest_table.at(self.kernels, call) >= self.since[:, None]  # [B, kept]
            weights = torch.where(known[:, :, None, None], weights, held)
        for k, places in enumerate(self.directions):
            for place, direction in enumerate(places):
                total = torch.addcmul(total, weights[:, k, place, :, None, None], direction)
        return total

    def _newest(self, call: Tensor) -> Tensor:
        """[B, kept, places], 1 at the place of the direction that was computed last."""
        return self.place_table.at(self.kernels, call).unflatten(1, (len(self.kept), self.places))
