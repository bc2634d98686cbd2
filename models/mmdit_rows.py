"""The row-batched forward of an MMDiT: both streams in static buffers, the modulation table, one call over the live rows."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from segue.kernels.combine import unpatchify
from segue.kernels.record import DIFFERENTIABLE, REFERENCE, Kernels

from .drawn_rows import PromptPool, rows_of, write_drawn
from .mmdit import MMDiT, TextCondition
from .read_rows import BranchReader, Head, StateUpdate
from .recorded_rows import branch_states, recordable
from .residuals import RowCarries
from .rows import RowLayout, group_rows
from .start_rows import Clock, start_modulation, start_text


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
        drawn: Mapping[int, Tensor] | None = None,
        classes: Mapping[int, int] | None = None,
    ):
        """``slots`` conditions per sample; capacity for ``times`` distinct times and ``conditions`` distinct pooled texts.

        ``text_tokens`` is the prompt length M, by default the model's.  ``drawn``: slots whose labels [B] int64 every call
        reads from there, of a :class:`PromptPool` with as many classes as ``classes`` says of the slot.
        """
        spec, weight = model.spec, model.final_layer.linear.weight
        spec.check_size(height, width)
        self.model, self.batch, self.height, self.width = model, batch, height, width
        self.times, self.conditions, self.kernels = times, conditions, kernels
        rows, text = row_blocks * batch, text_tokens or spec.text_tokens
        self.hidden = weight.new_empty(rows, spec.tokens(height, width), spec.dim)  # [R, L, D]
        self.text = weight.new_empty(rows, text, spec.dim)  # [R, M, D]
        self.context = weight.new_zeros(slots, batch, text, spec.dim)  # the embedded prompts, which every call starts from
        self.modulation = weight.new_empty(rows, model.modulation_width)  # [R, W], this call's rows of the table
        self.table = weight.new_zeros(times * conditions, model.modulation_width)  # row = time * conditions + condition
        self.condition_index = torch.zeros(slots, batch, dtype=torch.int64, device=weight.device)
        self.positions = model.position_table(height, width).clone()
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
        slots, device = len(self.context), self.table.device
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
        for slot, found in zip(fixed, index.view(len(fixed), self.batch), strict=True):
            self.condition_index[slot].copy_(found)
        for slot, condition in zip(self.context, conditions, strict=True):
            slot.copy_(self.model.embed_context(condition.context.to(device)))
        embedded = self.model.embed_condition(times.to(device, torch.float32)[:, None], distinct)  # [T, N, D]
        table = self.table.view(self.times, self.conditions, -1)
        self.model.modulation(embedded, out=table[: len(times), : len(distinct)])
        for slot, pool in pools.items():
            self.time_values[: len(times)].copy_(times)
            self.pools[slot].copy_(self.model.embed_context(pool.context.to(device)))
            self.pooled[slot].copy_(self.model.y_embedder(pool.pooled.to(device)))

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        clock: Clock,
        layout: RowLayout,
        coefficients: Tensor | None,
        update: StateUpdate | None = None,
        scale: Tensor | None = None,
    ) -> Tensor | None:
        """``sum_i c_i v_i`` over the branches of ``layout``, [B, C, H, W] fp32; None where it went into ``update`` already.

        x [B, C, H, W] fp32, which ``scale`` [B] fp32 turns into the network's input; coefficients [B, branches] fp32, or
        [B, branches, C] where a rule treats channels differently; None keeps the branches apart, [branches, B, C, H, W]
        fp32.  See :class:`.read_rows.BranchReader`.
        """
        model, batch, kernels = self.model, self.batch, self.kernels
        modulation = start_modulation(
            kernels, self.table, clock, self.condition_index, self.conditions, layout.conditions, out=self.modulation
        )
        write_drawn(modulation, layout.conditions, self.drawn, batch, lambda slot: self._drawn_modulation(slot, clock))
        per_block, final = model.split_modulation(modulation)
        hidden = self.hidden.view(-1, batch, *self.hidden.shape[1:])  # [J, B, L, D]
        text = self.text.view(-1, batch, *self.text.shape[1:])  # [J, B, M, D]
        roots, patches = len(layout.roots), model.x_embedder.proj
        kernels.embed_patches(x, patches.weight, patches.bias, self.positions, hidden[:roots], scale)
        start_text(self.context, layout.conditions[:roots], text)
        write_drawn(self.text, layout.conditions[:roots], self.drawn, batch, self._drawn_text)
        carries = RowCarries(self.hidden, kernels), RowCarries(self.text, kernels)
        for layer, (block, schedule) in enumerate(zip(model.joint_blocks, layout.layers, strict=True)):
            for fork in schedule.forks:
                for carry, rows in zip(carries, (hidden, text), strict=True):
                    carry.settle()
                    rows[fork.target].copy_(rows[fork.source])
            for group in schedule.groups:
                rows, segments = group_rows(group, batch)
                states, carry = (self.hidden[rows], self.text[rows]), tuple(each.at(rows) for each in carries)
                block(*states, per_block[layer][rows], kernels, segments, carry)
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
    ) -> list[Tensor]:
        """The outputs of the branches of ``layout``, each [B, C, H, W] fp32, with gradients; see :mod:`.recorded_rows`.

        x, scale as :meth:`forward`; time [B] fp32; conditions as :meth:`load`.
        """
        batch, spec = self.batch, model.spec
        pooled = torch.cat([recordable(conditions[slot].pooled).to(x.device) for slot in layout.conditions])
        modulation = model.modulation(model.embed_condition(time.repeat(len(layout.blocks)), pooled))
        per_block, final = model.split_modulation(modulation)
        hidden = model.embed(x if scale is None else x * scale[:, None, None, None], self.positions)
        texts = [model.embed_context(recordable(text.context).to(x.device)) for text in conditions]
        states = branch_states(
            layout,
            batch,
            [(hidden, texts[slot]) for slot in layout.conditions[: len(layout.roots)]],
            lambda layer, states, rows, segments: model.joint_blocks[layer](
                *states, per_block[layer][rows], DIFFERENTIABLE, segments
            ),
            checkpoints=model.gradient_checkpointing,
        )
        outputs = []
        for state, readout in zip(states, layout.readouts, strict=True):
            shift, out_scale = model.final_shift_scale(final[readout.row * batch : (readout.row + 1) * batch, None])
            patches = model.final_layer.linear(DIFFERENTIABLE.modulated_norm(state, shift, out_scale))
            outputs.append(unpatchify(patches, spec.patch, self.height, self.width).float())
        return outputs
