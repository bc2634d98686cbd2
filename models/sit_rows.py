"""The row-batched forward of a DiT or SiT: static buffers, the modulation table, and one call over the live rows."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from segue.kernels.combine import unpatchify
from segue.kernels.record import DIFFERENTIABLE, REFERENCE, Kernels

from .drawn_rows import write_drawn
from .gated_rows import close_gates, open_gates, with_closed_gates
from .modulation_table import ModulationTable
from .read_rows import BranchReader, Head, StateUpdate
from .recorded_rows import branch_states
from .residuals import RowCarries
from .rows import RowLayout, group_rows
from .sit import SiT
from .start_rows import Clock

PAIRS_AT_ONCE = 256  # (time, label) pairs whose modulation is computed together: the table never exists twice


class SiTRows:
    """Buffers of one network for B samples and up to ``row_blocks`` row blocks, and its forward over them.

    ``load`` computes for a run what depends on the weights and not on the sample; ``forward`` only reads it, so one captured
    step serves every call.
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
        variance: bool = False,
        drawn: Mapping[int, Tensor] | None = None,
        gated: bool = False,
    ):
        """``slots`` conditions per sample; capacity for ``times`` distinct times and ``conditions`` distinct labels.

        ``drawn``: slots whose labels [B] int64 every call reads from there; the modulation of their rows is its own work, since
        a table of all labels would be too large (11 GB for DiT-XL/2).  ``gated``: calls may close gates of some rows.

        With ``variance`` every call leaves in ``self.variance`` [B, C, H, W] fp32 what the first branch of its layout says of
        the variance: the second half of the output's channels, without guidance.
        """
        spec, weight = model.spec, model.final_layer.linear.weight
        spec.check_size(height, width)
        self.model, self.batch, self.height, self.width = model, batch, height, width
        self.times, self.labels, self.kernels = times, conditions, kernels
        rows, tokens = row_blocks * batch, spec.tokens(height, width)
        modulation = model.modulation_width
        self.hidden = weight.new_empty(rows, tokens, spec.dim)  # [R, L, D]
        self.modulation = weight.new_empty(rows, modulation)  # [R, W], this call's rows of the table
        self.table = ModulationTable(weight, modulation, times, conditions, slots, batch)
        self._ahead: tuple[Tensor, Tensor] | None = None  # of a ring: the times of the run, the label of each condition
        self.drawn = dict(drawn or {})
        self.time_values = torch.zeros(times if self.drawn else 0, dtype=torch.float32, device=weight.device)
        self.positions = model.positions(height, width).to(weight, copy=True)
        self.projections = {layer: self.model.projection(layer) for layer in (*spec.exits, spec.depth)}
        self.gates = model.gate_columns().to(weight.device) if gated else None
        self.variance: Tensor | None = None
        if variance:
            self.variance = torch.zeros(batch, spec.channels, height, width, dtype=torch.float32, device=weight.device)
            self.variance_projection = model.projection(spec.depth, spec.channels)

    def remembered(self) -> Iterator[Tensor]:
        """The weights that :meth:`load` computes with or copies, and :meth:`forward` does not read."""
        yield from self.model.run_weights()
        for layer in self.projections:
            yield from self.model.head(layer).parameters()

    @torch.no_grad()
    def load(self, times: Tensor, conditions: Sequence[Tensor]) -> None:
        """Compute the modulation of every (time, label) pair of a run, and the weights of the used channels of the heads.

        times [T] fp64, the distinct network times; conditions: labels [B] int64 for each slot, of which those of drawn ones are
        not read.  Raises ``ValueError`` beyond the capacity.
        """
        fixed = [slot for slot in range(len(conditions)) if slot not in self.drawn]
        distinct, index = torch.stack([conditions[slot] for slot in fixed]).unique(return_inverse=True)
        if len(times) > self.times or len(distinct) > self.labels:
            raise ValueError(
                f"{len(times)} times and {len(distinct)} labels exceed the capacity {self.times} and {self.labels}"
            )
        device = self.hidden.device
        times, labels = times.to(device, torch.float32), distinct.to(device)
        if self.drawn:
            self.time_values[: len(times)].copy_(times)
        self.table.begin(len(times))
        if self.table.is_ring:
            every = labels.new_zeros(len(conditions), self.batch)
            every[fixed] = labels[index.to(device)]
            self._ahead = times, every.flatten()
        else:
            for slot, found in zip(fixed, index, strict=True):
                self.table.index[slot].copy_(found)
            self._modulate(slice(len(times)), times[:, None].expand(-1, len(labels)), labels)
        self.positions.copy_(self.model.positions(self.height, self.width))
        for layer, kept in self.projections.items():
            found = self.model.projection(layer)
            if self.model.spec.out_channels == self.model.spec.channels:
                self.projections[layer] = found  # the weights themselves, which may have been replaced
                continue
            for part, value in zip(kept, found, strict=True):
                part.copy_(value)
        if self.variance is not None:
            found = self.model.projection(self.model.spec.depth, self.model.spec.channels)
            for part, value in zip(self.variance_projection, found, strict=True):
                part.copy_(value)

    @torch.no_grad()
    def look_ahead(self, time: np.ndarray) -> None:
        """Let the table have what every sample needs that is at the network time of index ``time`` [B]."""
        if (wanted := self.table.look_ahead(time)) is not None:
            times, labels = self._ahead
            part, index = wanted
            self._modulate(part, times[torch.from_numpy(index).to(times.device)], labels)

    def _modulate(self, part: slice, times: Tensor, labels: Tensor) -> None:
        """Compute a part of the table: times [part, N] of the first N conditions, whose labels are [N]."""
        entries, at_once = self.table.view[part, : len(labels)], max(1, PAIRS_AT_ONCE // len(labels))
        for own, into in zip(times.split(at_once), entries.split(at_once), strict=True):
            values = self.model.modulation(own.flatten(), labels.repeat(len(own)))
            into.copy_(values.view(len(own), len(labels), -1))

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        clock: Clock,
        layout: RowLayout,
        coefficients: Tensor | None,
        update: StateUpdate | None = None,
        scale: Tensor | None = None,
        opened: Tensor | None = None,
    ) -> Tensor | None:
        """``sum_i c_i v_i`` over the branches of ``layout``, [B, C, H, W] fp32; None where it went into ``update`` already.

        x [B, C, H, W] fp32, which ``scale`` [B] fp32 turns into the network's input; coefficients [B, branches] fp32, or
        [B, branches, C] where a rule treats channels differently; see :class:`.read_rows.BranchReader`.  opened: as
        :func:`.gated_rows.open_gates`, for a layout with gated rows.
        """
        model, batch, kernels = self.model, self.batch, self.kernels
        modulation = self.table.start(kernels, clock, layout.conditions, out=self.modulation)
        write_drawn(modulation, layout.conditions, self.drawn, batch, lambda slot: self._drawn_modulation(slot, clock))
        close_gates(modulation, open_gates(layout, opened, self.gates, modulation.dtype))
        per_block, final, exits = model.split_modulation(modulation)
        hidden = self.hidden.view(-1, batch, *self.hidden.shape[1:])  # [J, B, L, D]
        reader = BranchReader(kernels, hidden, layout, coefficients, model.spec, (self.height, self.width), update)
        patches = model.x_embedder.proj
        kernels.embed_patches(x, patches.weight, patches.bias, self.positions, hidden[: len(layout.roots)], scale)
        carries = RowCarries(self.hidden, kernels)
        for layer, (block, schedule) in enumerate(zip(model.blocks, layout.layers, strict=True)):
            if schedule.forks or reader.reads(layer):
                carries.settle()
            if layer in exits:
                reader.read(layer, self._head(layer, exits[layer]))
            for fork in schedule.forks:
                hidden[fork.target].copy_(hidden[fork.source])
            for group in schedule.groups:
                rows, segments = group_rows(group, batch)
                block(self.hidden[rows], per_block[layer][rows], kernels, segments, carries.at(rows))
        carries.settle()
        head = self._head(model.spec.depth, final)
        if self.variance is not None:
            self._read_variance(hidden, layout.readouts[0].row, head)
        reader.read(model.spec.depth, head)
        return reader.output()

    def _drawn_modulation(self, slot: int, clock: Clock) -> Tensor:
        """That of a drawn slot at each sample's call, [B, W]."""
        time = self.kernels.gather_rows(self.time_values, clock.time_index(self.kernels))
        return self.model.modulation(time, self.drawn[slot])

    def _read_variance(self, hidden: Tensor, row: int, head: Head) -> None:
        """Project the variance channels of one row block; hidden [J, B, L, D]."""
        patches = torch.empty(*hidden.shape[1:3], len(self.variance_projection[1]), dtype=torch.float32, device=hidden.device)
        self.kernels.project(hidden[row], head.shift[row], head.scale[row], *self.variance_projection, out=patches)
        self.variance.copy_(unpatchify(patches, self.model.spec.patch, self.height, self.width))

    def recorded(
        self,
        model: SiT,
        x: Tensor,
        time: Tensor,
        conditions: Sequence[Tensor],
        layout: RowLayout,
        scale: Tensor | None = None,
        opened: Tensor | None = None,
    ) -> list[Tensor]:
        """The outputs of the branches of ``layout``, each [B, C, H, W] fp32, with gradients; see :mod:`.recorded_rows`.

        x, scale, opened as :meth:`forward`; time [B] fp32; conditions: labels [B] int64 for each slot.
        """
        batch, spec = self.batch, model.spec
        labels = torch.cat([conditions[slot].to(x.device) for slot in layout.conditions])
        modulation = model.modulation(time.repeat(len(layout.blocks)), labels)
        modulation = with_closed_gates(modulation, open_gates(layout, opened, self.gates, modulation.dtype), batch)
        per_block, final, exits = model.split_modulation(modulation)
        hidden = model.embed(x if scale is None else x * scale[:, None, None, None])
        states = branch_states(
            layout,
            batch,
            [(hidden,)] * len(layout.roots),
            lambda layer, states, rows, segments: (
                model.blocks[layer](*states, per_block[layer][rows], DIFFERENTIABLE, segments),
            ),
        )
        outputs = []
        for state, readout in zip(states, layout.readouts, strict=True):
            rows = slice(readout.row * batch, (readout.row + 1) * batch)
            if readout.layer == spec.depth:
                patches = model.final_layer(state, final[rows])
            else:
                patches = model.exit_layers[str(readout.layer)](state, exits[readout.layer][rows])
            outputs.append(unpatchify(patches, spec.patch, self.height, self.width)[:, : spec.channels].float())
        return outputs

    def _head(self, layer: int, modulation: Tensor) -> Head:
        """The head after ``layer`` blocks.  modulation [J B, 2 D]."""
        shift, scale = modulation.view(-1, self.batch, modulation.shape[-1]).chunk(2, dim=-1)  # [J, B, D]
        return Head(shift, scale, *self.projections[layer])
