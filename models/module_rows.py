"""The row plan over a diffusers transformer's own modules, for weights that cannot be packed.

LoRA layers, quantised linears, offload hooks, other attention processors and compiled blocks all act, because every module
is called as the transformer calls it; only the rows differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segue.kernels.combine import unpatchify
from segue.kernels.record import REFERENCE, Kernels

from .mmdit import TextCondition
from .mmdit_spec import MMDiTSpec
from .read_rows import StateUpdate
from .rows import FULL, RowLayout, group_rows
from .start_rows import Clock, start_text


@dataclass(frozen=True)
class SlotInputs:
    """What the samples of one condition bring to a call beside latent and prompt.

    ``residuals``: of a ControlNet, each [B, L, D], spread over the blocks; ``image_embeds`` [B, N, E]: of an IP-Adapter.
    """

    residuals: tuple[Tensor, ...] = ()
    image_embeds: Tensor | None = None


@dataclass(frozen=True)
class CallInputs:
    """The extra inputs of one call: one :class:`SlotInputs` per condition (or none), and what attention processors take."""

    slots: tuple[SlotInputs, ...] = ()
    attention: Mapping[str, Any] = field(default_factory=dict)


class ModuleNetwork(nn.Module):
    """A live diffusers ``SD3Transformer2DModel`` as a network of an engine.

    The transformer is not a submodule: moving or casting this network leaves it alone.  ``inputs`` holds the extra inputs of
    the next call.
    """

    def __init__(self, transformer: nn.Module, spec: MMDiTSpec):
        super().__init__()
        object.__setattr__(self, "transformer", transformer)
        self.spec = spec
        self.inputs = CallInputs()

    def rows(self, batch: int, height: int, width: int, **capacity: Any) -> "ModuleRows":
        """The row-batched forward for B samples; see :class:`ModuleRows`."""
        return ModuleRows(self, batch, height, width, **capacity)


def check_layout(layout: RowLayout) -> None:
    """Raise ``ValueError`` unless every row does whole blocks or none: perturbed attention would need other processors."""
    for schedule in layout.layers:
        for group in schedule.groups:
            for segment in group:
                if segment.operation != FULL:
                    raise ValueError(f"a transformer that runs through its own modules has no {segment.operation}; only skip")


class ModuleRows:
    """The forward of a :class:`ModuleNetwork` over live rows, with the interface of ``MMDiTRows``.

    Every call embeds its prompts and times anew, as diffusers does, and the blocks compute their own modulation: a LoRA may be
    switched or scaled between two calls, and weights may move.
    """

    def __init__(
        self,
        network: ModuleNetwork,
        batch: int,
        height: int,
        width: int,
        row_blocks: int,
        slots: int,
        times: int,
        conditions: int,
        kernels: Kernels = REFERENCE,
        text_tokens: int | None = None,
    ):
        """``row_blocks`` and ``slots`` size the buffers; ``times``, ``conditions`` and ``text_tokens`` follow the run."""
        network.spec.check_size(height, width)
        self.network, self.kernels = network, kernels
        self.batch, self.height, self.width = batch, height, width
        self.row_blocks, self.slots = row_blocks, slots

    def remembered(self) -> tuple[Tensor, ...]:
        """The weights that a run computes with once: none."""
        return ()

    def load(self, times: Tensor, conditions: Sequence[TextCondition]) -> None:
        """Keep the prompts and times of a run.

        times [T] fp64, the distinct network times; conditions: one :class:`TextCondition` of B prompts for each slot, on the
        device and in the dtype in which the transformer runs.
        """
        if len(conditions) != self.slots or any(len(condition) != self.batch for condition in conditions):
            found = [len(condition) for condition in conditions]
            raise ValueError(f"these rows hold {self.slots} conditions of {self.batch} prompts, got {found}")
        self.prompts = tuple(conditions)
        self.dtype, self.times = conditions[0].context.dtype, times.to(conditions[0].context.device, torch.float32)
        self.hidden = self.text = None

    def forward(
        self,
        x: Tensor,
        clock: Clock,
        layout: RowLayout,
        coefficients: Tensor | None,
        update: StateUpdate | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """``sum_i c_i v_i`` over the branches of ``layout``, [B, C, H, W] fp32.

        x [B, C, H, W] fp32, which ``scale`` [B] fp32 turns into the network's input; coefficients [B, branches] fp32, or
        [B, branches, C] where a rule treats channels differently; None keeps the branches apart, [branches, B, C, H, W]
        fp32.  Branches are combined after the projection, which may be anything, so an ``update`` is left to the caller.
        """
        check_layout(layout)
        transformer, batch, slots = self.network.transformer, self.batch, layout.conditions
        time = self.times[self.kernels.gather_rows(clock.times, clock.call)]  # [B]
        used = tuple(dict.fromkeys(slots))
        context, embedding = self._embedded(used, slots, time)
        self._make_buffers(context)
        hidden = self.hidden.view(-1, batch, *self.hidden.shape[1:])  # [J, B, L, D]
        text = self.text.view(-1, batch, *self.text.shape[1:])  # [J, B, M, D]
        attention = self._attention_inputs(time, slots)
        if scale is not None:
            x = x * scale[:, None, None, None]
        started = list(layout.roots)
        hidden[: len(started)].copy_(transformer.pos_embed(x.to(self.dtype)))
        start_text(context, tuple(used.index(slot) for slot in slots[: len(started)]), text)
        for layer, (block, schedule) in enumerate(zip(transformer.transformer_blocks, layout.layers, strict=True)):
            for fork in schedule.forks:
                hidden[fork.target].copy_(hidden[fork.source])
                text[fork.target].copy_(text[fork.source])
                started.append(fork.target)
            for group in schedule.groups:
                rows, _ = group_rows(group, batch)
                part = {name: value[rows] if isinstance(value, Tensor) else value for name, value in attention.items()}
                self._block(block, rows, embedding[rows], part)
            if layer < self.network.spec.depth - 1:
                self._add_residuals(layer, hidden, started, slots)
        return self._read(hidden, embedding, layout, coefficients)

    def _embedded(self, used: tuple[int, ...], slots: tuple[int, ...], time: Tensor) -> tuple[Tensor, Tensor]:
        """The prompts of the slots in use [S, B, M, D], and times with pooled text of every row [J B, D].  time [B]."""
        transformer = self.network.transformer
        context = transformer.context_embedder(torch.cat([self.prompts[slot].context for slot in used]))
        embedding = transformer.time_text_embed(time.repeat(len(used)), torch.cat([self.prompts[slot].pooled for slot in used]))
        embedding = embedding.unflatten(0, (len(used), self.batch))
        rows = torch.cat([embedding[used.index(slot)] for slot in slots])
        return context.unflatten(0, (len(used), self.batch)), rows

    def _make_buffers(self, context: Tensor) -> None:
        """The states of both streams, unless they are there, in the dtype of the embedded prompts [S, B, M, D]."""
        if self.hidden is not None and self.hidden.dtype == context.dtype:
            return
        spec, rows = self.network.spec, self.row_blocks * self.batch
        self.hidden = context.new_empty(rows, spec.tokens(self.height, self.width), spec.dim)  # [R, L, D]
        self.text = context.new_empty(rows, *context.shape[2:])  # [R, M, D]

    def _block(self, block: nn.Module, rows: slice, embedding: Tensor, attention: Mapping[str, Any]) -> None:
        """One block over a range of rows; the last one returns no text."""
        text, hidden = block(
            hidden_states=self.hidden[rows],
            encoder_hidden_states=self.text[rows],
            temb=embedding,
            joint_attention_kwargs=dict(attention) or None,
        )
        self.hidden[rows].copy_(hidden)
        if text is not None:
            self.text[rows].copy_(text)

    def _add_residuals(self, layer: int, hidden: Tensor, started: list[int], slots: tuple[int, ...]) -> None:
        """The ControlNet residual of a layer on every row that exists there, also where the block is skipped, as diffusers."""
        inputs = self.network.inputs.slots
        if not inputs or not inputs[0].residuals:
            return
        for row in started:
            residuals = inputs[slots[row]].residuals
            hidden[row].add_(residuals[int(layer / (self.network.spec.depth / len(residuals)))])

    def _attention_inputs(self, time: Tensor, slots: tuple[int, ...]) -> dict[str, Any]:
        """What attention processors take: as given, and the IP-Adapter's image tokens [J B, N, D] of each row's condition."""
        inputs = self.network.inputs
        attention = dict(inputs.attention)
        if inputs.slots and inputs.slots[0].image_embeds is not None:
            images = torch.cat([inputs.slots[slot].image_embeds for slot in slots])
            tokens, embedded = self.network.transformer.image_proj(images, time.repeat(len(slots)))
            attention |= {"ip_hidden_states": tokens, "temb": embedded}
        return attention

    def _read(self, hidden: Tensor, embedding: Tensor, layout: RowLayout, coefficients: Tensor | None) -> Tensor:
        """Final norm, projection and combination.  hidden [J, B, L, D]; embedding [J B, D] -> [B, C, H, W] fp32."""
        transformer, blocks = self.network.transformer, len(layout.blocks)
        patches = transformer.proj_out(transformer.norm_out(hidden[:blocks].flatten(0, 1), embedding))
        patches = patches.unflatten(0, (blocks, self.batch))  # [J, B, L, P P C]
        size = self.network.spec.patch, self.height, self.width
        rows = tuple(readout.row for readout in layout.readouts)
        if coefficients is None:
            return torch.stack([unpatchify(patches[row], *size).float() for row in rows])
        return self.kernels.combine_branches(patches, coefficients, rows, *size)
