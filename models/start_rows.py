"""The beginning of a call: what each row block takes from the conditions of its sample."""

from torch import Tensor, add


def slot_runs(slots: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Row blocks and the condition slots they take, in runs of neighbours: (0, 1, 0) -> rows 0:2 and 2:3, slots 0:2 and 0:1."""
    runs: list[tuple[slice, slice]] = []
    for row, slot in enumerate(slots):
        if runs and runs[-1][1].stop == slot:
            rows, taken = runs[-1]
            runs[-1] = slice(rows.start, row + 1), slice(taken.start, slot + 1)
        else:
            runs.append((slice(row, row + 1), slice(slot, slot + 1)))
    return runs


def table_index(time_index: Tensor, slot_index: Tensor, conditions: int, slots: tuple[int, ...], out: Tensor) -> Tensor:
    """Rows of a table [times * conditions, W] for row blocks that take ``slots``: ``time * conditions + condition``, [J B].

    time_index [B]; slot_index [slots, B], the condition of each slot and sample; written to ``out`` [J or more, B].  int64.
    """
    for rows, taken in slot_runs(slots):
        add(slot_index[taken], time_index, alpha=conditions, out=out[rows])
    return out[: len(slots)].flatten()


def start_tokens(tokens: Tensor, positions: Tensor, hidden: Tensor, roots: int) -> None:
    """The embedded sample [B, L, D] plus positions [L, D], rounded once, as the state of the first ``roots`` row blocks.

    hidden [J, B, L, D].
    """
    add(tokens.expand(roots, *tokens.shape), positions, out=hidden[:roots])


def start_text(context: Tensor, slots: tuple[int, ...], text: Tensor) -> None:
    """The embedded prompts [slots, B, M, D] of ``slots`` as the state of the first row blocks of ``text`` [J, B, M, D]."""
    for rows, taken in slot_runs(slots):
        text[rows].copy_(context[taken])
