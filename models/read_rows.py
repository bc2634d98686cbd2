"""Reading branches off the row blocks: one projection of their combination, or one per branch where channels differ."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segue.kernels.combine import unpatchify
from segue.kernels.dispatch import Kernels

from .rows import RowLayout
from .spec import ModelSpec


@dataclass(frozen=True)
class StateUpdate:
    """The solver update that ends a call, in place, as :func:`segue.kernels.combine.solver_update` of the guided output.

    x, history, noise (or None) [B, C, H, W] fp32; row [B, 6] fp32.
    """

    x: Tensor
    history: Tensor
    row: Tensor
    noise: Tensor | None


@dataclass(frozen=True)
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
        parts = layout.projections(self.early)
        self.update = update if self.early and parts == 1 else None
        self.heads = 0  # read so far
        if self.update is None:
            shape = (parts, *hidden.shape[1:3], spec.patch**2 * spec.channels)  # [heads or branches, B, L, P P C]
            self.patches = torch.empty(shape, dtype=torch.float32, device=hidden.device)

    def read(self, layer: int, head: Head) -> None:
        """Read the branches that end after ``layer`` blocks, if any."""
        branches = [i for i, readout in enumerate(self.layout.readouts) if readout.layer == layer]
        if not branches:
            return
        rows = tuple(self.layout.readouts[i].row for i in branches)
        operands, projection = (self.hidden, head.shift, head.scale), (head.weight, head.bias)
        if not self.early:
            for i, row in zip(branches, rows, strict=True):
                self.kernels.project(*(x[row] for x in operands), *projection, out=self.patches[i])
            return
        combination = *operands, chosen(self.coefficients, branches), rows, *projection
        if (update := self.update) is not None:
            self.kernels.readout_update(update.x, update.history, update.row, update.noise, *combination, self.size[0])
        else:
            self.kernels.combine_then_project(*combination, out=self.patches[self.heads])
            self.heads += 1

    def output(self) -> Tensor | None:
        """The combination [B, C, H, W] fp32, or [branches, B, C, H, W] where branches stay apart; None after an update."""
        if self.update is not None:
            return None
        if self.coefficients is None:
            return unpatchify(self.patches.flatten(0, 1), *self.size).unflatten(0, self.patches.shape[:2])
        weights = None if self.early else self.coefficients
        return self.kernels.combine_branches(self.patches, weights, tuple(range(len(self.patches))), *self.size)


def chosen(coefficients: Tensor, branches: list[int] | tuple[int, ...]) -> Tensor:
    """Columns ``branches``, ascending, of coefficients [B, branches, ...]: a view where they are evenly spaced."""
    first, last = branches[0], branches[-1]
    step = branches[1] - first if len(branches) > 1 else 1
    if list(branches) == list(range(first, last + 1, step)):
        return coefficients[:, first : last + 1 : step]
    return torch.stack([coefficients[:, i] for i in branches], dim=1)
