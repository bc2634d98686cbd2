"""The row-batched forward of a DiT or SiT: static buffers, the modulation table, and one call over the live rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segue.kernels.dispatch import REFERENCE, Kernels
from segue.kernels.readout import unpatchify

from .read_rows import chosen, read_branches
from .rows import Readout, RowLayout, group_rows
from .sit import FinalLayer, SiT

PAIRS_AT_ONCE = 256  # (time, label) pairs whose modulation is computed together: the table never exists twice


class SiTRows:
    """Buffers of one network for B samples and up to ``row_blocks`` row blocks, and its forward over them.

    ``load`` fills the modulation table for a run; ``forward`` only reads it, so one captured step serves every call.
    """

    def __init__(
        self,
        model: SiT,
        batch: int,
        height: int,
        width: int,
        row_blocks: int,
        slots: int,
        times: int,
        conditions: int,
        kernels: Kernels = REFERENCE,
    ):
        """``slots`` conditions per sample; capacity for ``times`` distinct times and ``conditions`` distinct labels."""
        spec, weight = model.spec, model.final_layer.linear.weight
        spec.check_size(height, width)
        self.model, self.batch, self.height, self.width = model, batch, height, width
        self.times, self.labels, self.kernels = times, conditions, kernels
        rows, tokens = row_blocks * batch, spec.tokens(height, width)
        modulation = (6 * spec.depth + 2 + 2 * len(spec.exits)) * spec.dim
        self.hidden = weight.new_empty(rows, tokens, spec.dim)  # [R, L, D]
        self.modulation = weight.new_empty(rows, modulation)  # [R, W], this call's rows of the table
        self.table = weight.new_zeros(times * conditions, modulation)  # row = time index * labels + label index
        self.label_index = torch.zeros(slots, batch, dtype=torch.int64, device=weight.device)
        self.positions = model.positions(height, width).to(weight)

    @torch.no_grad()
    def load(self, times: Tensor, conditions: Sequence[Tensor]) -> None:
        """Compute the modulation of every (time, label) pair of a run.

        times [T] fp64, the distinct network times; conditions: labels [B] int64 for each slot.  Raises ``ValueError``
        beyond the capacity.
        """
        distinct, index = torch.stack(list(conditions)).unique(return_inverse=True)
        if len(times) > self.times or len(distinct) > self.labels:
            raise ValueError(
                f"{len(times)} times and {len(distinct)} labels exceed the capacity {self.times} and {self.labels}"
            )
        self.label_index.copy_(index)
        times, labels = times.to(self.table.device, torch.float32), distinct.to(self.table.device)
        table = self.table.view(self.times, self.labels, -1)
        at_once = max(1, PAIRS_AT_ONCE // len(labels))
        for first in range(0, len(times), at_once):
            part = times[first : first + at_once]
            values = self.model.modulation(part.repeat_interleave(len(labels)), labels.repeat(len(part)))
            table[first : first + len(part), : len(labels)].copy_(values.view(len(part), len(labels), -1))

    def forward(self, x: Tensor, time_index: Tensor, layout: RowLayout, coefficients: Tensor) -> Tensor:
        """``sum_i c_i v_i`` over the branches of ``layout``, [B, C, H, W] fp32.

        x [B, C, H, W] fp32, the scaled network input; time_index [B] int64; coefficients [B, branches] fp32, or
        [B, branches, C] where a rule treats channels differently (the branches are then combined after the projection).
        """
        model, batch = self.model, self.batch
        blocks = len(layout.blocks)
        index = torch.cat([time_index * self.labels + self.label_index[slot] for slot in layout.conditions])
        modulation = self.kernels.gather_rows(self.table, index, out=self.modulation[: blocks * batch])
        per_block, final, exits = model.split_modulation(modulation)
        hidden = self.hidden.view(-1, batch, *self.hidden.shape[1:])  # [J, B, L, D]
        tokens = model.x_embedder(x.to(self.hidden.dtype)) + self.positions
        for root in layout.roots:
            hidden[root].copy_(tokens)
        parts = []
        for layer, (block, schedule) in enumerate(zip(model.blocks, layout.layers, strict=True)):
            parts += self._read(layer, hidden, exits.get(layer), layout, coefficients)
            for fork in schedule.forks:
                hidden[fork.target].copy_(hidden[fork.source])
            for group in schedule.groups:
                rows, segments = group_rows(group, batch)
                block(self.hidden[rows], per_block[layer][rows], self.kernels, segments)
        parts += self._read(model.spec.depth, hidden, final, layout, coefficients)
        patches = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        return unpatchify(patches, model.spec.patch, self.height, self.width)

    def _read(
        self, layer: int, hidden: Tensor, modulation: Tensor | None, layout: RowLayout, coefficients: Tensor
    ) -> list[Tensor]:
        """The contribution [B, L, P P C] of the branches that are read after ``layer`` blocks; empty when there are none."""
        branches = [i for i, readout in enumerate(layout.readouts) if readout.layer == layer]
        if not branches:
            return []
        readouts = [layout.readouts[i] for i in branches]
        weight, bias = self._projection(self._head(readouts[0]))
        shift, scale = modulation.view(-1, self.batch, modulation.shape[-1]).chunk(2, dim=-1)  # [J, B, D]
        rows = tuple(readout.row for readout in readouts)
        return [read_branches(self.kernels, hidden, shift, scale, rows, chosen(coefficients, branches), weight, bias)]

    def _head(self, readout: Readout) -> FinalLayer:
        return self.model.final_layer if readout.head is None else self.model.exit_layers[str(readout.head)]

    def _projection(self, head: FinalLayer) -> tuple[Tensor, Tensor]:
        """Weight and bias for the channels the sampler uses (a learned-sigma head has twice as many)."""
        spec, linear = self.model.spec, head.linear
        if spec.out_channels == spec.channels:
            return linear.weight, linear.bias
        weight = linear.weight.view(-1, spec.out_channels, spec.dim)[:, : spec.channels].reshape(-1, spec.dim)
        return weight, linear.bias.view(-1, spec.out_channels)[:, : spec.channels].reshape(-1)
