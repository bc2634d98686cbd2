"""Latents to pictures and back, through the VAE and image processor of a diffusers pipeline."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters.live_transformer import execution_device


@torch.no_grad()
def decode_latents(pipe, latents: Tensor, max_batch: int | None = None) -> list:
    """Latents [B, C, H, W] -> B PIL images, ``max_batch`` at a time.  Raises ``ValueError`` for another shape."""
    vae, config = pipe.vae, pipe.vae.config
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, got {max_batch}")
    if latents.dim() != 4 or latents.shape[1] != config.latent_channels:
        raise ValueError(f"latents must have shape [B, {config.latent_channels}, H, W], got {list(latents.shape)}")
    images = []
    for part in latents.split(len(latents) if max_batch is None else max_batch):
        scaled = part.to(execution_device(vae), vae.dtype) / config.scaling_factor + config.shift_factor
        images += pipe.image_processor.postprocess(vae.decode(scaled, return_dict=False)[0], output_type="pil")
    return images


def load_images(pipe, images: Any, height: int, width: int, count: int = 1) -> Tensor:
    """Pictures (PIL, arrays, tensors), resized for latents of ``height`` x ``width`` -> [N, 3, H, W], N one or ``count``.

    Raises ``ValueError`` for another number of pictures or channels.
    """
    factor, channels = pipe.vae_scale_factor, pipe.vae.config.in_channels
    pixels = pipe.image_processor.preprocess(images, height=height * factor, width=width * factor)
    if len(pixels) not in (1, count):
        raise ValueError(f"{len(pixels)} start images do not fit {count} prompts: give one, or one per prompt")
    if pixels.shape[1] != channels:
        raise ValueError(f"a start image must have {channels} channels, got {pixels.shape[1]}; a latent goes to latents=")
    return pixels


@torch.no_grad()
def draw_start(pipe, pixels: Tensor, seeds: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Clean latents [B, C, h, w] fp32 of N pictures, each for B / N samples in a row, and noise of that shape in ``dtype``.

    Latents are samples of the VAE's posterior.  Each sample's generator draws its latent, then its noise: the order of
    ``StableDiffusion3Img2ImgPipeline`` with one picture and one generator per sample.
    """
    vae, generators = pipe.vae, [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    each, starts = len(generators) // len(pixels), []
    for index, picture in enumerate(pixels.split(1)):
        posterior = vae.encode(picture.to(execution_device(vae), vae.dtype)).latent_dist
        starts += [posterior.sample(generator) for generator in generators[index * each : (index + 1) * each]]
    latents = (torch.cat(starts) - vae.config.shift_factor) * vae.config.scaling_factor
    noise = [torch.randn(latents.shape[1:], generator=generator, dtype=dtype, device="cpu") for generator in generators]
    return latents.float(), torch.stack(noise)
