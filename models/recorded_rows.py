"""The live rows of one call as autograd records them: every state is a new tensor, and nothing is computed beforehand."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .rows import RowLayout, Segment, group_rows

States = tuple[Tensor, ...]  # of one row block: the state of each stream, [B, tokens, D]; of its texts [B or 2 B, M, D]
RunBlock = Callable[[int, States, slice, tuple[Segment, ...]], States]
AddBetween = Callable[[int, int, States], States]


def branch_states(
    layout: RowLayout,
    batch: int,
    roots: Sequence[States],
    run_block: RunBlock,
    add_between: AddBetween | None = None,
    checkpoints: bool = False,
) -> list[Tensor]:
    """The first stream of every branch of ``layout`` where its head reads it, each [B, L, D].

    roots: the states of the row blocks that start from the embedded sample.  ``run_block(layer, states, rows, segments)``
    runs a layer on the range ``rows`` of all rows; ``add_between(layer, row block, states)`` is what is added after one.
    With ``checkpoints`` the inside of a layer is computed again in the backward pass, instead of being kept until then.
    """
    if checkpoints:
        run_block = partial(checkpoint, run_block, use_reentrant=False)
    blocks: dict[int, States] = dict(zip(layout.roots, roots, strict=True))
    found: dict[int, Tensor] = {}

    def read(layer: int) -> None:
        found.update((i, blocks[r.row][0]) for i, r in enumerate(layout.readouts) if r.layer == layer)

    for layer, schedule in enumerate(layout.layers):
        read(layer)
        for fork in schedule.forks:
            blocks[fork.target] = blocks[fork.source]
        for group in schedule.groups:
            rows, segments = group_rows(group, batch)
            members = range(group[0].start, group[-1].stop)
            states = tuple(torch.cat(stream) for stream in zip(*(blocks[j] for j in members), strict=True))
            after = run_block(layer, states, rows, segments)
            texts = [layout.texts[j] * batch for j in members]
            split = [after[0].split(batch), *(stream.split(texts) for stream in after[1:])]
            blocks.update(zip(members, zip(*split, strict=True), strict=True))
        if add_between is not None:
            blocks = {j: add_between(layer, j, states) for j, states in blocks.items()}
    read(layout.depth)
    return [found[i] for i in range(len(layout.readouts))]


def recordable(tensor: Tensor) -> Tensor:
    """A tensor that autograd may keep: those of inference mode it may not."""
    return tensor.clone() if tensor.is_inference() else tensor
