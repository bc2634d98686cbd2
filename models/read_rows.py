"""Reading branches off the row blocks: one projection of their combination, or one per branch where channels differ."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.kernels.combine import MAX_BRANCHES, unpatchify
from segue.kernels.record import Kernels

from .rows import RowLayout
from .spec import ModelSpec


@dataclass(frozen=True, eq=False)
class StateUpdate:
    """The solver update that ends a call, in place, as :func:`segue.kernels.combine.solver_update` of the guided output.

    x, history, noise (or None) [B, C, H, W] fp32; row [B, 6 + E] fp32; call [B] int64, the counters that go on by one;
    earlier [B, E, C, H, W] fp32, or None where E is 0.
    """

    x: Tensor
    history: Tensor
    row: Tensor
    noise: Tensor | None
    call: Tensor
    earlier: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Head:
    """The modulation of a final norm, ``shift`` and ``scale`` [J, B, D], and a projection, [P P C, D] and [P P C]."""

    shift: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor


class BranchReader:
    """Reads the branches of one call off ``hidden`` [J, B, L, D], head by head, and combines them.

    coefficients [B, branches] fp32: the branches of one head are combined before its projection; [B, branches, C] fp32, where
    a rule treats channels differently: after it; None: the branches stay apart.  Where a single head is all there is to
    read, an ``update`` is made by the kernel that reads it.
    """

    def __init__(
        self,
        kernels: Kernels,
        hidden: Tensor,
        layout: RowLayout,
        coefficients: Tensor | None,
        spec: ModelSpec,
        size: tuple[int, int],
        update: StateUpdate | None = None,
    ):
        self.kernels, self.hidden, self.layout, self.coefficients = kernels, hidden, layout, coefficients
        self.size = spec.patch, *size
        self.early = coefficients is not None and coefficients.dim() == 2
        parts = _combinations(layout) if self.early else len(layout.readouts)
        self.update = update if self.early and parts == 1 else None
        self.combined = 0  # combinations read so far
        if self.update is None:
            shape = (parts, *hidden.shape[1:3], spec.patch**2 * spec.channels)  # [combinations or branches, B, L, P P C]
            self.patches = torch.empty(shape, dtype=torch.float32, device=hidden.device)

    def reads(self, layer: int) -> bool:
        """Whether a branch ends after ``layer`` blocks."""
        return any(readout.layer == layer for readout in self.layout.readouts)

    def read(self, layer: int, head: Head) -> None:
        """Read the branches that end after ``layer`` blocks, if any."""
        branches = [i for i, readout in enumerate(self.layout.readouts) if readout.layer == layer]
        if not branches:
            return
        operands, projection = (self.hidden, head.shift, head.scale), (head.weight, head.bias)
        if not self.early:
            for i in branches:
                row = self.layout.readouts[i].row
                self.kernels.project(*(x[row] for x in operands), *projection, out=self.patches[i])
            return
        for group in _groups(branches):
            rows = tuple(self.layout.readouts[i].row for i in group)
            combination = *operands, chosen(self.coefficients, group), rows, *projection
            if (update := self.update) is not None:
                state = update.x, update.history, update.row, update.noise
                self.kernels.readout_update(*state, *combination, self.size[0], update.call, update.earlier)
            else:
                self.kernels.combine_then_project(*combination, out=self.patches[self.combined])
                self.combined += 1

    def output(self) -> Tensor | None:
        """The combination [B, C, H, W] fp32, or [branches, B, C, H, W] where branches stay apart; None after an update."""
        if self.update is not None:
            return None
        if self.coefficients is None:
            return unpatchify(self.patches.flatten(0, 1), *self.size).unflatten(0, self.patches.shape[:2])
        total = None
        for group in _groups(range(len(self.patches))):
            weights = None if self.early else chosen(self.coefficients, group)
            part = self.kernels.combine_branches(self.patches, weights, tuple(group), *self.size)
            total = part if total is None else total.add_(part)
        return total


def _groups(branches: Sequence[int]) -> list[Sequence[int]]:
    """``branches`` in groups that one kernel takes; nearly always a single one."""
    return [branches[first : first + MAX_BRANCHES] for first in range(0, len(branches), MAX_BRANCHES)]


def _combinations(layout: RowLayout) -> int:
    """How many times branches are combined and projected together: once for each head, more for a head of many branches."""
    return sum(len(_groups(range(count))) for count in Counter(readout.layer for readout in layout.readouts).values())


def chosen(coefficients: Tensor, branches: Sequence[int]) -> Tensor:
    """Columns ``branches``, ascending, of coefficients [B, branches, ...]: a view where they are evenly spaced."""
    first, last = branches[0], branches[-1]
    step = branches[1] - first if len(branches) > 1 else 1
    if list(branches) == list(range(first, last + 1, step)):
        return coefficients[:, first : last + 1 : step]
    return torch.stack([coefficients[:, i] for i in branches], dim=1)
