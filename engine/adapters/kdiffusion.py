"""k-diffusion's contract on top of a guided velocity: ``model(x, sigma[B]) -> denoised`` with ``denoised = x - sigma v``.

Only the contract; the package itself is not needed.
"""

import torch
from torch import Tensor

from ..numeric_input import real_number
from ..planning.plan_warnings import warn_of
from ..velocity import GuidedVelocity


class Denoiser:
    """A callable for samplers that want the clean estimate; ``x`` is in flow coordinates, ``(1 - sigma) x0 + sigma eps``.

    Its ``velocity(x, sigma)`` is what the estimate comes from, for loops that integrate it: upwards from level 0, too, where
    the estimate is ``x`` and tells nothing.
    """

    def __init__(self, velocity: GuidedVelocity, batch: int):
        """``batch``: the number B of samples that ``velocity`` has conditions for; ``ValueError`` for a rule of others."""
        velocity.check_samples(batch)
        self.velocity = velocity
        if velocity.plan is not None:
            warn_of(velocity.plan)
        self.shape = batch, velocity.specs["main"].channels, velocity.height, velocity.width

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """x [B, C, H, W]; sigma [B], or one level for all -> the estimate of x0, [B, C, H, W] in the dtype of ``x``.

        Raises ``ValueError`` for another shape, ``TypeError`` for what is no level.
        """
        if not isinstance(sigma, Tensor) or sigma.dtype == torch.bool:
            sigma = torch.tensor(real_number(sigma, "sigma must be a tensor of noise levels or one number"))
        if sigma.ndim == 0:
            sigma = sigma.expand(len(x))
        if tuple(x.shape) != self.shape:
            raise ValueError(f"x must have shape {self.shape}, got {tuple(x.shape)}")
        level = sigma.float().view(-1, 1, 1, 1).to(x.device)  # fp32 before it moves: not every device has fp64
        return (x.float() - level * self.velocity(x, sigma).to(x.device)).to(x.dtype)
