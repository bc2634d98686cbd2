"""The end of a network call: final norm and modulation, branch combination, projection to latent patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .adaln import modulated_norm


def combine_then_project(h: Tensor, shift: Tensor, scale: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Project the combination of J branches that share one head; the projection runs once instead of J times.

    ``sum_j c_j (W z_j + b) = W (sum_j c_j z_j) + (sum_j c_j) b`` with ``z_j`` the modulated final norm of branch ``j``.
    h [J, B, L, D]; shift, scale [J, B, D]; coefficients [J, B] fp32; weight [O, D]; bias [O] -> [B, L, O] fp32.
    """
    combined = torch.zeros(h.shape[1:], dtype=torch.float32, device=h.device)
    for j in range(h.shape[0]):
        z = modulated_norm(h[j].float(), shift[j, :, None].float(), scale[j, :, None].float())
        combined.addcmul_(z, coefficients[j, :, None, None])
    projected = F.linear(combined.to(weight.dtype), weight).float()
    return torch.addcmul(projected, coefficients.sum(0)[:, None, None], bias.float())


def project(h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Project each branch on its own.  h [J, B, L, D]; shift, scale [J, B, D] -> [J, B, L, O] fp32."""
    z = modulated_norm(h.float(), shift[:, :, None].float(), scale[:, :, None].float())
    return F.linear(z.to(weight.dtype), weight, bias).float()


def unpatchify(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """[B, L, P * P * C] with (p, q, c) order inside a patch -> [B, C, height, width]."""
    rows, columns = height // patch, width // patch
    grid = patches.reshape(patches.shape[0], rows, columns, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, height, width)
