"""The end of a network call: final norm and modulation, branch combination, projection to latent patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .adaln import modulated_norm


def combine_then_project(
    h: Tensor, shift: Tensor, scale: Tensor, coefficients: Tensor, rows: tuple[int, ...], weight: Tensor, bias: Tensor
) -> Tensor:
    """Project the combination of the branches that share one head; the projection runs once instead of once per branch.

    ``sum_j c_j (W z_j + b) = W (sum_j c_j z_j) + (sum_j c_j) b`` with ``z_j`` the modulated final norm of row block
    ``rows[j]``.  h [J', B, L, D]; shift, scale [J', B, D]; coefficients [B, len(rows)] fp32; weight [O, D]; bias [O]
    -> [B, L, O] fp32.
    """
    combined = None
    for j, row in enumerate(rows):
        z = modulated_norm(h[row].float(), shift[row, :, None].float(), scale[row, :, None].float())
        z = z * coefficients[:, j, None, None]
        combined = z if combined is None else combined.add_(z)
    projected = F.linear(combined.to(weight.dtype), weight).float()
    return torch.addcmul(projected, coefficients.sum(1)[:, None, None], bias.float())


def project(h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Project one branch.  h [B, L, D]; shift, scale [B, D]; weight [O, D]; bias [O] -> [B, L, O] fp32."""
    z = modulated_norm(h.float(), shift[:, None].float(), scale[:, None].float())
    return F.linear(z.to(weight.dtype), weight, bias).float()


def unpatchify(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """[B, L, P * P * C] with (p, q, c) order inside a patch -> [B, C, height, width]."""
    rows, columns = height // patch, width // patch
    grid = patches.reshape(patches.shape[0], rows, columns, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, height, width)
