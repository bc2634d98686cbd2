"""Moments of the latents that a VAE gives an image, and the scale and bias by channel that make them a network's."""

from typing import Any

import torch
from torch import Tensor

from segue.engine.adapters.live_transformer import execution_device
from segue.engine.adapters.vae import latent_affine


def check_encoder(vae: Any, where: str) -> None:
    """Raise ``ValueError`` for an autoencoder that gives no distribution, as ``AutoencoderTiny``."""
    if type(vae).__name__ != "AutoencoderKL":
        raise ValueError(f"moments are of an AutoencoderKL, and {where} is an {type(vae).__name__}")


def check_pixels(shape: tuple[int, int, int], factor: int) -> None:
    """Raise ``ValueError`` for images that are not a whole number of latents large."""
    _, height, width = shape
    if height % factor or width % factor:
        raise ValueError(f"height and width must be multiples of {factor}, the VAE's pixels per latent, got {height} x {width}")


@torch.no_grad()
def image_moments(vae: Any, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] -> mean and standard deviation [B, 2 C, h, w] fp32 on the CPU, unscaled.

    Raises ``FloatingPointError`` for values that are not finite.
    """
    place = execution_device(vae)
    with torch.autocast(place.type, enabled=False):
        latents = vae.encode(images.to(place, vae.dtype)).latent_dist
    moments = torch.cat([latents.mean, latents.std], dim=1).float().cpu()
    if not moments.isfinite().all():
        raise FloatingPointError(f"the VAE gives moments that are not finite in {vae.dtype}; use float32")
    return moments


def network_affine(vae: Any) -> tuple[list[float], list[float]]:
    """Scale and bias by channel: a network's latents are ``z * scale + bias`` of the VAE's z.

    The inverse of what a :class:`~segue.engine.adapters.vae.Decoder` does: ``(z - shift) * scaling_factor``, then, where the
    configuration has them, less ``latents_mean`` times that factor, by ``latents_std``.
    """
    (factor, shift), channels = latent_affine(vae), vae.config.latent_channels
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        mean, std = [0.0] * channels, [1.0] * channels
    scale = [factor / s for s in std]
    return scale, [-(shift + m) * s for m, s in zip(mean, scale, strict=True)]
