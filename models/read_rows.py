"""Reading branches off the row blocks: one projection of their combination, or one per branch where channels differ."""

import torch
from torch import Tensor

from segue.kernels.dispatch import Kernels


def read_branches(
    kernels: Kernels,
    hidden: Tensor,
    shift: Tensor,
    scale: Tensor,
    rows: tuple[int, ...],
    coefficients: Tensor | None,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """``sum_i c_i (W z_i + b)`` over the branches read from row blocks ``rows``, [B, L, P P C] fp32.

    hidden [J, B, L, D]; shift, scale [J, B, D] of the head; coefficients [B, branches] fp32, or [B, branches, C] where a rule
    treats channels differently; weight [P P C, D]; bias [P P C].  Without coefficients the branches stay apart:
    [branches, B, L, P P C] in the dtype of the weights.
    """
    if coefficients is None:
        parts = [kernels.project(hidden[row], shift[row], scale[row], weight, bias) for row in rows]
        return torch.stack(parts).to(weight.dtype)
    if coefficients.dim() == 2:
        return kernels.combine_then_project(hidden, shift, scale, coefficients, rows, weight, bias)
    patch_area = len(weight) // coefficients.shape[-1]
    total = None
    for i, row in enumerate(rows):
        part = kernels.project(hidden[row], shift[row], scale[row], weight, bias)
        part = part * coefficients[:, i].repeat(1, patch_area)[:, None]
        total = part if total is None else total.add_(part)
    return total


def chosen(coefficients: Tensor, branches: list[int]) -> Tensor:
    """Columns ``branches`` of coefficients [B, branches, ...], a view where they are contiguous."""
    columns = coefficients[:, branches[0] : branches[-1] + 1]
    if len(branches) == columns.shape[1]:
        return columns
    return torch.stack([coefficients[:, i] for i in branches], dim=1)
