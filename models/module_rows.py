"""The row plan over a diffusers transformer's own modules, for weights that cannot be packed.

LoRA layers, quantised linears, offload hooks, other attention processors and compiled blocks all act, because every module
is called as the transformer calls it; only the rows differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.kernels.combine import unpatchify
from segue.kernels.record import REFERENCE, Kernels

from .drawn_rows import PromptPool
from .mmdit import TextCondition
from .mmdit_spec import MMDiTSpec
from .read_rows import StateUpdate
from .recorded_rows import States, branch_states, recordable
from .rows import FULL, RowLayout, Segment, group_rows
from .start_rows import Clock, start_text


@dataclass(frozen=True, eq=False)
class SlotInputs:
    """What the samples of one condition bring to a call beside latent and prompt.

    ``residuals``: of a ControlNet, each [B, L, D], spread over the blocks; ``image_embeds`` [B, N, E]: of an IP-Adapter.
    """

    residuals: tuple[Tensor, ...] = ()
    image_embeds: Tensor | None = None


@dataclass(frozen=True, eq=False)
class CallInputs:
    """The extra inputs of one call: one :class:`SlotInputs` per condition (or none), and what attention processors take."""

    slots: tuple[SlotInputs, ...] = ()
    attention: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        """Those of all conditions."""
        for slot in self.slots:
            yield from slot.residuals
            if slot.image_embeds is not None:
                yield slot.image_embeds


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
    if layout.joined:
        raise ValueError(
            "a transformer that runs through its own modules has no NAG, which acts inside its attention; only skip"
        )
    for schedule in layout.layers:
        for group in schedule.groups:
            for segment in group:
                if segment.operation != FULL:
                    raise ValueError(f"a transformer that runs through its own modules has no {segment.operation}; only skip")


def _changed(layout: RowLayout, opened: Tensor | None, batch: int) -> Tensor | None:
    """Whether each block changes each row, [J B, depth] bool; None where every block changes all that it runs for.

    The modules compute gates of their own, so what a closed block leaves is put back.
    """
    if not layout.gated:
        return None
    if opened is None:
        raise ValueError("a layout with gated rows needs the lists of open blocks")
    whole = torch.ones_like(opened[:, 0])
    changed = [opened[:, layout.gated[row]] if row in layout.gated else whole for row in range(len(layout.blocks))]
    return torch.cat(changed) > 0


class ModuleRows:
    """The forward of a :class:`ModuleNetwork` over live rows, with the interface of ``MMDiTRows``.

    Every call embeds its prompts and times anew, as diffusers does, and the blocks compute their own modulation: a LoRA may be
    switched or scaled between two calls, and weights may move.
    """

    hidden: Tensor  # [R, L, D], and the text [R, M, D]: made by the first call of a run
    text: Tensor

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
        drawn: Mapping[int, Tensor] | None = None,
        classes: Mapping[int, int] | None = None,
        gated: bool = False,
    ):
        """``row_blocks`` and ``slots`` size the buffers; ``times``, ``conditions``, ``text_tokens``, ``classes`` follow a run.

        ``drawn``: slots whose labels [B] int64 every call reads from there.
        """
        self.drawn = dict(drawn or {})
        network.spec.check_size(height, width)
        self.network, self.kernels = network, kernels
        self.batch, self.height, self.width = batch, height, width
        self.row_blocks, self.slots = row_blocks, slots

    def remembered(self) -> tuple[Tensor, ...]:
        """The weights that a run computes with once: none."""
        return ()

    def look_ahead(self, time: np.ndarray) -> None:
        """Nothing is computed ahead."""

    def load(self, times: Tensor, conditions: Sequence[TextCondition | PromptPool]) -> None:
        """Keep the prompts and times of a run.

        times [T] fp64, the distinct network times; conditions: one :class:`TextCondition` of B prompts for each slot, on the
        device and in the dtype in which the transformer runs.
        """
        if len(conditions) != self.slots or any(len(condition) != self.batch for condition in conditions):
            found = [len(condition) for condition in conditions]
            raise ValueError(f"these rows hold {self.slots} conditions of {self.batch} prompts, got {found}")
        self.prompts = tuple(conditions)
        self.dtype, self.times = conditions[0].context.dtype, times.to(conditions[0].context.device, torch.float32)
        self._sized = False

    def forward(
        self,
        x: Tensor,
        clock: Clock,
        layout: RowLayout,
        coefficients: Tensor | None,
        update: StateUpdate | None = None,
        scale: Tensor | None = None,
        opened: Tensor | None = None,
    ) -> Tensor:
        """``sum_i c_i v_i`` over the branches of ``layout``, [B, C, H, W] fp32.

        x [B, C, H, W] fp32, which ``scale`` [B] fp32 turns into the network's input; coefficients [B, branches] fp32, or
        [B, branches, C] where a rule treats channels differently; None keeps the branches apart, [branches, B, C, H, W]
        fp32.  Branches are combined after the projection, which may be anything, so an ``update`` is left to the caller.
        opened [B, G, depth], 1 or 0: the blocks that the gated rows of ``layout`` are changed by.
        """
        check_layout(layout)
        transformer, batch, slots = self.network.transformer, self.batch, layout.conditions
        time = self.times[clock.time_index(self.kernels)]  # [B]
        used = tuple(dict.fromkeys(slots))
        prompts = [
            text.drawn(self.drawn[slot]) if isinstance(text, PromptPool) else text for slot, text in enumerate(self.prompts)
        ]
        context, embedding = self._embedded(prompts, used, slots, time)
        self._make_buffers(context)
        hidden = self.hidden.view(-1, batch, *self.hidden.shape[1:])  # [J, B, L, D]
        text = self.text.view(-1, batch, *self.text.shape[1:])  # [J, B, M, D]
        attention = self._attention_inputs(time, slots)
        if scale is not None:
            x = x * scale[:, None, None, None]
        started, changed = list(layout.roots), _changed(layout, opened, batch)
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
                self._block(block, rows, embedding[rows], part, None if changed is None else changed[rows, layer, None, None])
            self._add_residuals(layer, hidden, started, slots)
        return self._read(hidden, embedding, layout, coefficients)

    def recorded(
        self,
        network: ModuleNetwork,
        x: Tensor,
        time: Tensor,
        conditions: Sequence[TextCondition],
        layout: RowLayout,
        scale: Tensor | None = None,
        opened: Tensor | None = None,
    ) -> list[Tensor]:
        """The outputs of the branches of ``layout``, each [B, C, H, W] fp32, with gradients; see :mod:`.recorded_rows`.

        x, scale, opened as :meth:`forward`; time [B] fp32; conditions as :meth:`load`.
        """
        check_layout(layout)
        transformer, batch, slots = network.transformer, self.batch, layout.conditions
        used = tuple(dict.fromkeys(slots))
        prompts = [TextCondition(recordable(text.context), recordable(text.pooled)) for text in conditions]
        context, embedding = self._embedded(prompts, used, slots, time)
        attention = self._attention_inputs(time, slots)
        hidden = transformer.pos_embed((x if scale is None else x * scale[:, None, None, None]).to(self.dtype))
        changed = _changed(layout, opened, batch)

        def run_block(layer: int, states: States, rows: slice, segments: tuple[Segment, ...]) -> States:
            part = {name: value[rows] if isinstance(value, Tensor) else value for name, value in attention.items()}
            image, text = states
            after, found = self._call(transformer.transformer_blocks[layer], image, text, embedding[rows], part)
            after = text if after is None else after
            if changed is None:
                return found, after
            here = changed[rows, layer, None, None]
            return torch.where(here, found, image), torch.where(here, after, text)

        def add_residual(layer: int, row: int, states: States) -> States:
            residual = self._residual(layer, slots[row])
            return states if residual is None else (states[0] + residual, states[1])

        roots = [(hidden, context[used.index(slot)]) for slot in slots[: len(layout.roots)]]
        outputs = []
        states = branch_states(layout, batch, roots, run_block, add_residual, transformer.gradient_checkpointing)
        for state, readout in zip(states, layout.readouts, strict=True):
            rows = slice(readout.row * batch, (readout.row + 1) * batch)
            patches = transformer.proj_out(transformer.norm_out(state, embedding[rows]))
            outputs.append(unpatchify(patches, network.spec.patch, self.height, self.width).float())
        return outputs

    def _embedded(
        self, prompts: Sequence[TextCondition], used: tuple[int, ...], slots: tuple[int, ...], time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The prompts of the slots in use [S, B, M, D], and times with pooled text of every row [J B, D].  time [B]."""
        transformer = self.network.transformer
        context = transformer.context_embedder(torch.cat([prompts[slot].context for slot in used]))
        embedding = transformer.time_text_embed(time.repeat(len(used)), torch.cat([prompts[slot].pooled for slot in used]))
        embedding = embedding.unflatten(0, (len(used), self.batch))
        rows = torch.cat([embedding[used.index(slot)] for slot in slots])
        return context.unflatten(0, (len(used), self.batch)), rows

    def _make_buffers(self, context: Tensor) -> None:
        """The states of both streams, unless they are there, in the dtype of the embedded prompts [S, B, M, D]."""
        if self._sized and self.hidden.dtype == context.dtype:
            return
        spec, rows = self.network.spec, self.row_blocks * self.batch
        self.hidden = context.new_empty(rows, spec.tokens(self.height, self.width), spec.dim)  # [R, L, D]
        self.text = context.new_empty(rows, *context.shape[2:])  # [R, M, D]
        self._sized = True

    def _block(
        self, block: nn.Module, rows: slice, embedding: Tensor, attention: Mapping[str, Any], changed: Tensor | None = None
    ) -> None:
        """One block over a range of rows, of which only ``changed`` [R, 1, 1] bool keep it; the last one returns no text."""
        text, hidden = self._call(block, self.hidden[rows], self.text[rows], embedding, attention)
        for state, found in ((self.hidden, hidden), (self.text, text)):
            if found is not None:
                state[rows].copy_(found if changed is None else torch.where(changed, found, state[rows]))

    @staticmethod
    def _call(
        block: nn.Module, hidden: Tensor, text: Tensor, embedding: Tensor, attention: Mapping[str, Any]
    ) -> tuple[Tensor | None, Tensor]:
        """A block as the transformer calls it; (text, hidden)."""
        kwargs = dict(attention) or None
        return block(hidden_states=hidden, encoder_hidden_states=text, temb=embedding, joint_attention_kwargs=kwargs)

    def _add_residuals(self, layer: int, hidden: Tensor, started: list[int], slots: tuple[int, ...]) -> None:
        """The ControlNet residual of a layer on every row that exists there, also where the block is skipped, as diffusers."""
        for row in started:
            if (residual := self._residual(layer, slots[row])) is not None:
                hidden[row].add_(residual)

    def _residual(self, layer: int, slot: int) -> Tensor | None:
        """What a ControlNet adds after a layer, but the last, to the rows of a condition."""
        inputs, depth = self.network.inputs.slots, self.network.spec.depth
        if layer == depth - 1 or not inputs or not inputs[0].residuals:
            return None
        residuals = inputs[slot].residuals
        return residuals[int(layer / (depth / len(residuals)))]

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
