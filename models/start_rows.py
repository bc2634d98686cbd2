"""The beginning of a call: what each row block takes from the conditions of its sample."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.kernels.record import Kernels

from .rows import RowLayout


@dataclass(frozen=True, eq=False)
class Clock:
    """Where every sample of a run is.

    call [B] int64; times [N] int64, or [B, N] where samples have their own, the index of the network time at each call.
    """

    call: Tensor
    times: Tensor

    def time_index(self, kernels: Kernels) -> Tensor:
        """The index [B] int64 of the network time of every sample's call."""
        if self.times.dim() == 1:
            return kernels.gather_rows(self.times, self.call)
        return kernels.gather_rows(self.times[:, :, None], self.call)[:, 0]


def slot_runs(slots: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Row blocks and the condition slots they take, in runs: slots (0, 1, 0) -> rows 0:2 take 0:2, row 2 takes 0:1.

    Neighbours, or one slot again and again: slots (0, 0) -> rows 0:2 take 0:1.
    """
    runs: list[tuple[slice, slice]] = []
    for row, slot in enumerate(slots):
        if runs:
            rows, taken = runs[-1]
            count, distinct = rows.stop - rows.start, taken.stop - taken.start
            if taken.stop == slot and count == distinct:
                runs[-1] = slice(rows.start, row + 1), slice(taken.start, slot + 1)
                continue
            if taken.start == slot and distinct == 1:
                runs[-1] = slice(rows.start, row + 1), taken
                continue
        runs.append((slice(row, row + 1), slice(slot, slot + 1)))
    return runs


def taken_slots(values: Tensor, slots: tuple[int, ...]) -> Iterator[tuple[slice, Tensor]]:
    """Runs of row blocks, and what they take from ``values`` [slots, ...] as a view with an entry per row block."""
    for rows, taken in slot_runs(slots):
        yield rows, values[taken].expand(rows.stop - rows.start, *values.shape[1:])


def start_text(context: Tensor, slots: tuple[int, ...], text: Tensor) -> None:
    """The embedded prompts [slots, B, M, D] of ``slots`` as the state of the first row blocks of ``text`` [J, B, M, D]."""
    for rows, taken in taken_slots(context, slots):
        text[rows].copy_(taken)


def start_texts(context: Tensor, layout: RowLayout, text: Tensor) -> None:
    """:func:`start_text` of the roots of a layout in which some have two texts; text [R', M, D]."""
    batch = context.shape[1]
    for row in layout.roots:
        slots = layout.text_slots[row]
        own = text[layout.text_rows(row, row + 1, batch)].unflatten(0, (batch, len(slots)))
        for place, taken in enumerate(slots):
            own[:, place].copy_(context[taken])


def text_modulation(modulation: Tensor, layout: RowLayout, batch: int, factors: Mapping[int, Tensor]) -> Tensor:
    """The modulation of every row of text, [R', W].

    modulation [(J + S) B, W]: of the row blocks of ``layout``, then of its S second texts, which are one for each sample;
    factors [B, W]: by what that of a second text is multiplied beside some row blocks.
    """
    blocks, second = modulation.unflatten(0, (-1, batch)), list(layout.joined)
    rows = []
    for row, condition in enumerate(layout.conditions):
        own = [blocks[row]]
        if condition in layout.joined:
            other = blocks[len(layout.blocks) + second.index(condition)]
            own.append(other * factors[row] if row in factors else other)
        rows.append(torch.stack(own, dim=1).flatten(0, 1))
    return torch.cat(rows)
