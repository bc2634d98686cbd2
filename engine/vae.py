"""Latents to pictures and back, through the VAE and image processor of a diffusers pipeline."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def decode_latents(pipe, latents: Tensor) -> list:
    """Latents [B, C, H, W] -> B PIL images."""
    config = pipe.vae.config
    scaled = latents.to(pipe.vae.device, pipe.vae.dtype) / config.scaling_factor + config.shift_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(scaled, return_dict=False)[0], output_type="pil")


@torch.no_grad()
def encode_image(pipe, image: Any, height: int, width: int) -> Tensor:
    """A picture (PIL, array or tensor), resized to fit -> its mean latent [1, C, height, width] fp32."""
    factor, config = pipe.vae_scale_factor, pipe.vae.config
    pixels = pipe.image_processor.preprocess(image, height=height * factor, width=width * factor)
    posterior = pipe.vae.encode(pixels.to(pipe.vae.device, pipe.vae.dtype)).latent_dist
    return ((posterior.mean - config.shift_factor) * config.scaling_factor).float()
