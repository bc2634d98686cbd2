"""Branches as what they do at every layer: operations that layouts are made of, and blocks that calls leave out."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from segue.models.rows import FULL, GATED, NO_GATE, SKIP, Path

from ..rules.branch import Branch, Exit, Perturb
from ..rules.drawn import Draw
from ..rules.dropped_blocks import DropBlocks


def branch_path(branch: Branch, conditions: tuple[str | int | Draw, ...], depth: int, gate: int = NO_GATE) -> Path:
    """A branch as one operation per layer; ``gate``: which list of open blocks is that of a branch that leaves out blocks."""
    operations, network = [FULL] * depth, branch.network
    if isinstance(network, Exit):
        operations = operations[: network.layer]
    elif isinstance(network, Perturb):
        for layer in network.layers:
            operations[layer] = SKIP if network.kind == "skip" else network.kind
    elif isinstance(network, DropBlocks):
        for layer in network.candidates(depth):
            operations[layer] = GATED
    return Path(conditions.index(branch.condition), tuple(operations), gate)


def opened_blocks(branches: Sequence[Branch], depths: Sequence[int], steps: np.ndarray, depth: int) -> np.ndarray:
    """``[N, G, depth]``, 1 for the blocks that each of G branches keeps at a call, 0 for those that it leaves out.

    steps [N], the step of every call; ``depths`` of their networks, at most ``depth``.
    """
    opened = np.ones((len(steps), len(branches), depth))
    for place, (branch, own) in enumerate(zip(branches, depths, strict=True)):
        dropped = cast(DropBlocks, branch.network).dropped(own, int(steps.max()) + 1)
        for call, step in enumerate(steps.tolist()):
            opened[call, place, dropped[step]] = 0.0
    return opened
