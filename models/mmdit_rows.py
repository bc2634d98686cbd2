"""The row-batched forward of an MMDiT: both streams in static buffers, the modulation table, one call over the live rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segue.kernels.combine import unpatchify
from segue.kernels.record import DIFFERENTIABLE, REFERENCE, Kernels

from .drawn_rows import PromptPool, rows_of, write_drawn
from .gated_rows import close_gates, open_gates, with_closed_gates
from .joint_attention import JoinedTexts
from .mmdit import MMDiT, TextCondition
from .modulation_table import ModulationTable
from .read_rows import BranchReader, Head, StateUpdate
from .recorded_rows import States, branch_states, recordable
from .residuals import RowCarries
from .rows import RowLayout, Segment, group_rows
from .start_rows import Clock, start_text, start_texts, text_modulation


@dataclass(frozen=True, eq=False)
class RowTexts:
    """Of all rows of a call with second texts: the modulation [R', W_b] of each text in each block, and numbers [R, 3]."""

    modulation: tuple[Tensor, ...]
    numbers: Tensor

    @classmethod
    def of(
        cls, model: MMDiT, modulation: Tensor, layout: RowLayout, numbers: Tensor, factors: Mapping[int, Tensor]
    ) -> "RowTexts":
        """modulation [(J + 1) B, W] of the row blocks and of the second texts; numbers [B, 3] of every sample.

        factors [B, W] of gated row blocks, for the second texts; the blocks' own have them.
        """
        per_text, _ = model.split_modulation(text_modulation(modulation, layout, len(numbers), factors))
        return cls(per_text, numbers.repeat(len(layout.blocks), 1))

    def part(self, layer: int, rows: slice, texts: slice) -> JoinedTexts:
        """Of a range of rows, in one block."""
        return JoinedTexts(self.modulation[layer][texts], self.numbers[rows])


class MMDiTRows:
    """Buffers of one network for B samples and up to ``row_blocks`` row blocks, and its forward over them.

    ``load`` embeds the prompts and fills the modulation table for a run; ``forward`` only reads them, so one captured step
    serves every call.
    """

    def __init__(
        self,
        model: MMDiT,
        batch: int,
        height: int,
        width: int,
        row_blocks: int,
        slots: int,
        times: int,
        conditions: int,
        kernels: Kernels = REFERENCE,
        text_tokens: int | None = None,
        text_blocks: int | None = None,
        drawn: Mapping[int, Tensor] | None = None,
        classes: Mapping[int, int] | None = None,
        gated: bool = False,
    ):
        """``slots`` conditions per sample; capacity for ``times`` distinct times and ``conditions`` distinct pooled texts.

        ``text_tokens`` is the prompt length M, by default the model's; ``text_blocks``: the texts of all row blocks, where some
        have two.  ``drawn``: slots whose labels [B] int64 every call reads from there, of a :class:`PromptPool` with as many
        classes as ``classes`` says of the slot.  ``gated``: calls may close gates of some rows.
        """
        spec, weight = model.spec, model.final_layer.linear.weight
        spec.check_size(height, width)
        self.model, self.batch, self.height, self.width = model, batch, height, width
        self.times, self.conditions, self.kernels = times, conditions, kernels
        rows, text = row_blocks * batch, text_tokens or spec.text_tokens
        self.hidden = weight.new_empty(rows, spec.tokens(height, width), spec.dim)  # [R, L, D]
        texts = (text_blocks or row_blocks) * batch
        self.text = weight.new_empty(texts, text, spec.dim)  # [R', M, D], R' = R where every row has one text
        self.context = weight.new_zeros(slots, batch, text, spec.dim)  # the embedded prompts, which every call starts from
        second = batch if text_blocks is not None else 0  # rows of the table for second texts, one for each sample
        self.modulation = weight.new_empty(rows + second, model.modulation_width)  # [R, W], this call's rows of the table
        self.table = ModulationTable(weight, model.modulation_width, times, conditions, slots, batch)
        self._ahead: tuple[Tensor, Tensor] | None = None  # of a ring: the times of the run, the pooled text of each condition
        self.positions = model.position_table(height, width).clone()
        self.gates = model.gate_columns().to(weight.device) if gated else None
        self.drawn, self.classes = dict(drawn or {}), dict(classes or {})
        self.time_values = torch.zeros(times if self.drawn else 0, dtype=torch.float32, device=weight.device)
        self.pools = {slot: weight.new_zeros(self.classes[slot] + batch, text, spec.dim) for slot in self.drawn}
        self.pooled = {slot: weight.new_zeros(self.classes[slot] + batch, spec.dim) for slot in self.drawn}  # embedded

    def remembered(self) -> Iterator[Tensor]:
        """The weights that :meth:`load` computes with, and :meth:`forward` does not."""
        return self.model.run_weights()

    @torch.no_grad()
    def load(self, times: Tensor, conditions: Sequence[TextCondition | PromptPool]) -> None:
        """Embed the prompts, and compute the modulation of every (time, pooled text) pair of a run.

        times [T] fp64, the distinct network times; conditions: one :class:`TextCondition` of B prompts for each slot, or the
        pool of a drawn one.  Raises ``ValueError`` for another shape and beyond the capacity.
        """
        slots, device = len(self.context), self.hidden.device
        pools = {slot: pool for slot, pool in enumerate(conditions) if isinstance(pool, PromptPool)}
        conditions = [text.plain if isinstance(text, PromptPool) else text for text in conditions]
        wanted = (self.batch, self.context.shape[2], self.model.spec.text_dim), (self.batch, self.model.spec.pooled_dim)
        shapes = [(tuple(condition.context.shape), tuple(condition.pooled.shape)) for condition in conditions]
        for shape in shapes:
            if shape != wanted:
                raise ValueError(
                    f"context and pooled must have shapes {wanted[0]} and {wanted[1]}, got {shape[0]} and {shape[1]}"
                )
        if len(shapes) != slots:
            raise ValueError(f"these rows hold {slots} conditions, got {len(shapes)}")
        fixed = [slot for slot in range(slots) if slot not in self.drawn]
        pooled = torch.cat([conditions[slot].pooled.to(device) for slot in fixed])
        distinct, index = pooled.unique(dim=0, return_inverse=True)
        if len(times) > self.times or len(distinct) > self.conditions:
            raise ValueError(
                f"{len(times)} times and {len(distinct)} prompts exceed the capacity {self.times} and {self.conditions}"
            )
        self.positions.copy_(self.model.position_table(self.height, self.width))
        for slot, condition in zip(self.context, conditions, strict=True):
            slot.copy_(self.model.embed_context(condition.context.to(device)))
        self.table.begin(len(times))
        if self.table.is_ring:
            every = pooled.new_zeros(slots, self.batch, pooled.shape[1])
            every[fixed] = pooled.view(len(fixed), self.batch, -1)
            self._ahead = times.to(device, torch.float32), every.flatten(0, 1)
        else:
            for slot, found in zip(fixed, index.view(len(fixed), self.batch), strict=True):
                self.table.index[slot].copy_(found)
            embedded = self.model.embed_condition(times.to(device, torch.float32)[:, None], distinct)  # [T, N, D]
            self.model.modulation(embedded, out=self.table.view[: len(times), : len(distinct)])
        for slot, pool in pools.items():
            self.time_values[: len(times)].copy_(times)
            self.pools[slot].copy_(self.model.embed_context(pool.context.to(device)))
            self.pooled[slot].copy_(self.model.y_embedder(pool.pooled.to(device)))

    @torch.no_grad()
    def look_ahead(self, time: np.ndarray) -> None:
        """Let the table have what every sample needs that is at the network time of index ``time`` [B]."""
        if (wanted := self.table.look_ahead(time)) is not None:
            times, pooled = self._ahead
            part, index = wanted
            embedded = self.model.embed_condition(times[torch.from_numpy(index).to(times.device)], pooled)  # [part, S B, D]
            self.model.modulation(embedded, out=self.table.view[part])

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        clock: Clock,
        layout: RowLayout,
        coefficients: Tensor | None,
        update: StateUpdate | None = None,
        scale: Tensor | None = None,
        normalized: Tensor | None = None,
        opened: Tensor | None = None,
    ) -> Tensor | None:
        """``sum_i c_i v_i`` over the branches of ``layout``, [B, C, H, W] fp32; None where it went into ``update`` already.

        x [B, C, H, W] fp32, which ``scale`` [B] fp32 turns into the network's input; coefficients [B, branches] fp32, or
        [B, branches, C] where a rule treats channels differently; None keeps the branches apart, [branches, B, C, H, W]
        fp32.  See :class:`.read_rows.BranchReader`.  normalized [B, 3] fp32: scale, tau and alpha of normalized attention
        guidance, for a layout with joined texts; opened: as :func:`.gated_rows.open_gates`, for one with gated rows.
        """
        model, batch, kernels = self.model, self.batch, self.kernels
        slots = *layout.conditions, *layout.joined.values()
        modulation = self.table.start(kernels, clock, slots, out=self.modulation)
        write_drawn(modulation, layout.conditions, self.drawn, batch, lambda slot: self._drawn_modulation(slot, clock))
        factors = open_gates(layout, opened, self.gates, modulation.dtype)
        close_gates(modulation, factors)
        joined = RowTexts.of(model, modulation, layout, normalized, factors) if layout.joined else None
        per_block, final = model.split_modulation(modulation[: len(layout.blocks) * batch])
        hidden = self.hidden.view(-1, batch, *self.hidden.shape[1:])  # [J, B, L, D]
        roots, patches = len(layout.roots), model.x_embedder.proj
        kernels.embed_patches(x, patches.weight, patches.bias, self.positions, hidden[:roots], scale)
        if layout.joined:
            start_texts(self.context, layout, self.text)
        else:
            start_text(self.context, layout.conditions[:roots], self.text.unflatten(0, (-1, batch)))
        for root, slot in enumerate(layout.conditions[:roots]):
            if slot in self.drawn:
                self.text[layout.text_rows(root, root + 1, batch)].copy_(self._drawn_text(slot))
        carries = RowCarries(self.hidden, kernels), RowCarries(self.text, kernels)
        for layer, (block, schedule) in enumerate(zip(model.joint_blocks, layout.layers, strict=True)):
            for fork in schedule.forks:
                for carry in carries:
                    carry.settle()
                hidden[fork.target].copy_(hidden[fork.source])
                target, source = (self.text[layout.text_rows(j, j + 1, batch)] for j in (fork.target, fork.source))
                target.copy_(source)
            for group in schedule.groups:
                rows, segments = group_rows(group, batch)
                texts = layout.text_rows(group[0].start, group[-1].stop, batch)
                states, carry = (self.hidden[rows], self.text[texts]), (carries[0].at(rows), carries[1].at(texts))
                more = () if joined is None else (joined.part(layer, rows, texts),)
                block(*states, per_block[layer][rows], kernels, segments, carry, *more)
        carries[0].settle()  # nothing reads the text after the last block
        shift, out_scale = model.final_shift_scale(final.view(-1, batch, final.shape[-1]))  # [J, B, D]
        linear = model.final_layer.linear
        reader = BranchReader(kernels, hidden, layout, coefficients, model.spec, (self.height, self.width), update)
        reader.read(model.spec.depth, Head(shift, out_scale, linear.weight, linear.bias))
        return reader.output()

    def _drawn_modulation(self, slot: int, clock: Clock) -> Tensor:
        """That of a drawn slot at each sample's call, [B, W]."""
        time = self.kernels.gather_rows(self.time_values, clock.time_index(self.kernels))
        pooled = self.kernels.gather_rows(self.pooled[slot], rows_of(self.drawn[slot], self.classes[slot]))
        return self.model.modulation(self.model.t_embedder(time) + pooled)

    def _drawn_text(self, slot: int) -> Tensor:
        """The embedded prompts of a drawn slot, [B, M, D]."""
        pool = self.pools[slot]
        found = self.kernels.gather_rows(pool.flatten(1), rows_of(self.drawn[slot], self.classes[slot]))
        return found.view(-1, *pool.shape[1:])

    def recorded(
        self,
        model: MMDiT,
        x: Tensor,
        time: Tensor,
        conditions: Sequence[TextCondition],
        layout: RowLayout,
        scale: Tensor | None = None,
        normalized: Tensor | None = None,
        opened: Tensor | None = None,
    ) -> list[Tensor]:
        """The outputs of the branches of ``layout``, each [B, C, H, W] fp32, with gradients; see :mod:`.recorded_rows`.

        x, scale, normalized, opened as :meth:`forward`; time [B] fp32; conditions as :meth:`load`.
        """
        batch, spec = self.batch, model.spec
        slots = *layout.conditions, *layout.joined.values()
        pooled = torch.cat([recordable(conditions[slot].pooled).to(x.device) for slot in slots])
        modulation = model.modulation(model.embed_condition(time.repeat(len(slots)), pooled))
        factors = open_gates(layout, opened, self.gates, modulation.dtype)
        modulation = with_closed_gates(modulation, factors, batch)
        per_block, final = model.split_modulation(modulation[: len(layout.blocks) * batch])
        joined = RowTexts.of(model, modulation, layout, normalized, factors) if layout.joined else None
        hidden = model.embed(x if scale is None else x * scale[:, None, None, None], self.positions)
        texts = [model.embed_context(recordable(text.context).to(x.device)) for text in conditions]

        def root_text(slot: int) -> Tensor:
            """[B, M, D], or [2 B, M, D] with a second text behind each."""
            if slot not in layout.joined:
                return texts[slot]
            return torch.stack([texts[slot], texts[layout.joined[slot]]], dim=1).flatten(0, 1)

        def run_block(layer: int, states: States, rows: slice, segments: tuple[Segment, ...]) -> States:
            first, last = rows.start // batch, rows.stop // batch
            more = () if joined is None else ((None, None), joined.part(layer, rows, layout.text_rows(first, last, batch)))
            return model.joint_blocks[layer](*states, per_block[layer][rows], DIFFERENTIABLE, segments, *more)

        roots = [(hidden, root_text(slot)) for slot in layout.conditions[: len(layout.roots)]]
        states = branch_states(layout, batch, roots, run_block, checkpoints=model.gradient_checkpointing)
        outputs = []
        for state, readout in zip(states, layout.readouts, strict=True):
            shift, out_scale = model.final_shift_scale(final[readout.row * batch : (readout.row + 1) * batch, None])
            patches = model.final_layer.linear(DIFFERENTIABLE.modulated_norm(state, shift, out_scale))
            outputs.append(unpatchify(patches, spec.patch, self.height, self.width).float())
        return outputs
