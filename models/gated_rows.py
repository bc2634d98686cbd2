"""Blocks that a call leaves out of some rows: their gates are multiplied by zero, so that the layout stays the same."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .rows import RowLayout


def open_gates(layout: RowLayout, opened: Tensor | None, gates: Tensor | None, dtype: torch.dtype) -> dict[int, Tensor]:
    """Of every gated row block what its modulation [B, W] is multiplied by: one, and zero at the gates of closed blocks.

    opened [B, G, depth], 1 or 0, of each list of open blocks; gates [W] int64, the block whose gate each column is, ``depth``
    for the others; ``dtype``: that of the modulation.
    """
    if not layout.gated:
        return {}
    if opened is None or gates is None:
        raise ValueError("a layout with gated rows needs rows that were made for them, and the lists of open blocks")
    factors = torch.cat([opened, torch.ones_like(opened[..., :1])], dim=-1).to(dtype)
    return {row: factors[:, gate].index_select(1, gates) for row, gate in layout.gated.items()}


def close_gates(modulation: Tensor, factors: Mapping[int, Tensor]) -> None:
    """Multiply the rows of ``modulation`` [J B, W] by the ``factors`` [B, W] of their row blocks, in place."""
    for row, factor in factors.items():
        modulation[row * len(factor) : (row + 1) * len(factor)].mul_(factor)


def with_closed_gates(modulation: Tensor, factors: Mapping[int, Tensor], batch: int) -> Tensor:
    """:func:`close_gates` as a new tensor, for autograd."""
    if not factors:
        return modulation
    blocks = modulation.split(batch)
    return torch.cat([block * factors[row] if row in factors else block for row, block in enumerate(blocks)])
