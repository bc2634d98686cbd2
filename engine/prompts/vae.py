"""Pictures to latents through the VAE and image processor of a diffusers pipeline, and what a run needs of its VAE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..adapters.live_transformer import execution_device
from ..adapters.vae import check_channels, latent_affine

OUTPUTS = ("pil", "latent")  # as the pipelines' output_type: pictures, or latents alone


def check_output(output: str, pipe: Any, channels: int) -> bool:
    """Whether pictures are asked for.  Raises ``ValueError`` where the pipeline cannot make them of latents of ``channels``."""
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    if output == "pil":
        need_vae(pipe, "make pictures: ask for output='latent'", channels)
    return output == "pil"


def need_vae(pipe: Any, purpose: str, channels: int | None = None) -> Any:
    """The VAE of a pipeline.  Raises ``ValueError`` if there is none, or none for latents of ``channels``."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise ValueError(f"the pipeline has no VAE to {purpose}")
    if channels is not None:
        check_channels(vae.config.latent_channels, channels, purpose)
    return vae


def load_images(pipe, images: Any, height: int, width: int, count: int = 1, channels: int | None = None) -> Tensor:
    """Pictures (PIL, arrays, tensors), resized for latents of ``height`` x ``width`` -> [N, 3, H, W], N one or ``count``.

    Raises ``ValueError`` for another number of pictures or channels, and without a VAE that gives latents of ``channels``.
    """
    vae = need_vae(pipe, "encode a start image: give latents", channels)
    factor, colours = pipe.vae_scale_factor, vae.config.in_channels
    pixels = pipe.image_processor.preprocess(images, height=height * factor, width=width * factor)
    if len(pixels) not in (1, count):
        raise ValueError(f"{len(pixels)} start images do not fit {count} prompts: give one, or one per prompt")
    if pixels.shape[1] != colours:
        raise ValueError(f"a start image must have {colours} channels, got {pixels.shape[1]}; a latent goes to latents=")
    return pixels


def read_start(image: Any) -> Any:
    """A picture to start from, as :func:`load_images` takes it: a file is read.  Raises ``OSError``."""
    if not isinstance(image, str | Path):
        return image
    with Image.open(image) as file:
        return file.convert("RGB")


@torch.no_grad()
def draw_start(pipe, pixels: Tensor, seeds: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Clean latents [B, C, h, w] fp32 of N pictures, each for B / N samples in a row, and noise of that shape in ``dtype``.

    Latents are samples of the VAE's posterior, or what a VAE without one gives.  Each sample's generator draws its latent,
    then its noise: the order of ``StableDiffusion3Img2ImgPipeline`` with one picture and one generator per sample.
    """
    vae, generators = pipe.vae, [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    each, starts = len(generators) // len(pixels), []
    for index, picture in enumerate(pixels.split(1)):
        encoded = vae.encode(picture.to(execution_device(vae), vae.dtype))
        starts += [_latents(encoded, generator) for generator in generators[index * each : (index + 1) * each]]
    scale, shift = latent_affine(vae)
    latents = (torch.cat(starts) - shift) * scale
    noise = [torch.randn(latents.shape[1:], generator=generator, dtype=dtype, device="cpu") for generator in generators]
    return latents.float(), torch.stack(noise)


def _latents(encoded: Any, generator: torch.Generator) -> Tensor:
    """One latent of what a VAE's ``encode`` returned: a draw from its posterior, or the latents themselves."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.sample(generator)
    for name in ("latents", "latent"):  # AutoencoderTiny's, AutoencoderDC's
        if hasattr(encoded, name):
            return getattr(encoded, name)
    raise TypeError(f"the VAE encodes pictures to a {type(encoded).__name__}, which holds no latents; pass latents instead")
