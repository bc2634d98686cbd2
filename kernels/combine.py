"""The solver update on the fp32 state, and the gather of table rows by the per-sample call counter."""

import torch
from torch import Tensor


def gather_rows(table: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows of a device table.  table [N, W], index [R] int64 -> [R, W], written to ``out`` when given."""
    return torch.index_select(table, 0, index, out=out)


def solver_update(x: Tensor, output: Tensor, history: Tensor, noise: Tensor | None, row: Tensor) -> None:
    """One solver row per sample, in place.

    ``x' = a x + b o + c h + d z`` and ``h' = e x + f o`` with ``o`` the guided network output, ``h`` what the previous row
    left behind and ``z`` unit noise.  x, output, history, noise [B, C, H, W] fp32; row [B, 6] = (a, b, c, d, e, f) fp32.
    """
    a, b, c, d, e, f = (row[:, i, None, None, None] for i in range(6))
    updated = a * x + b * output + c * history
    if noise is not None:
        updated += d * noise
    torch.add(e * x, f * output, out=history)
    x.copy_(updated)
