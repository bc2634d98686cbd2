"""Latents to pictures by a VAE of diffusers: a pipeline's own, one read from a folder, or a module that a caller brings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.models.checkpoint_files import read_json
from segue.models.spec import positive_integer

from ..images import check_finite
from ..numeric_input import counting_number
from ..saved_files import MODEL_CONFIG, component_weights
from .live_transformer import execution_device


def check_channels(taken: int, made: int, purpose: str) -> None:
    """Raise ``ValueError`` unless a VAE for latents of ``taken`` channels fits a network that makes ``made``."""
    if made != taken:
        raise ValueError(f"the VAE takes latents of {taken} channels, and the transformer makes {made}: it cannot {purpose}")


def latent_affine(vae: Any) -> tuple[float, float]:
    """Scale and shift between the VAE's latents and the network's; where its configuration has none, 1 and 0."""
    scale, shift = vae.config.get("scaling_factor"), vae.config.get("shift_factor")
    return 1.0 if scale is None else scale, 0.0 if shift is None else shift


@torch.no_grad()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, H, W] fp32 of a network -> pictures [B, 3, H', W'] in the precision of its VAE, about [-1, 1]."""
    scale, shift = latent_affine(vae)
    return vae.decode(latents.to(vae.dtype) / scale + shift, return_dict=False)[0]


@torch.no_grad()
def decode_latents(vae: Any, processor: Any, latents: Tensor, max_batch: int | None = None) -> list:
    """Latents [B, C, H, W] -> B PIL images, ``max_batch`` at a time.  Raises ``ValueError`` for another shape.

    ``processor`` is the ``VaeImageProcessor`` that makes pictures of what the VAE decodes.
    """
    channels, (scale, shift) = vae.config.latent_channels, latent_affine(vae)
    if max_batch is not None:
        max_batch = counting_number(max_batch, "max_batch")
    if latents.dim() != 4 or latents.shape[1] != channels:
        raise ValueError(f"latents must have shape [B, {channels}, H, W], got {list(latents.shape)}")
    images = []
    place = execution_device(vae)
    with torch.autocast(place.type, enabled=False):  # the VAE has a precision of its own
        for part in latents.split(len(latents) if max_batch is None else max_batch):
            scaled = part.to(place, vae.dtype) / scale + shift
            images += processor.postprocess(vae.decode(scaled, return_dict=False)[0], output_type="pil")
    return images


def saved_channels(folder: Path) -> int:
    """Channels of the latents of a saved VAE, without its weights.  Raises ``ValueError``."""
    path = folder / MODEL_CONFIG
    return positive_integer(f"latent_channels of {path}", read_json(path).get("latent_channels", 4))


@dataclass(frozen=True)
class Decoder:
    """Pictures of latents by a VAE outside any pipeline, which stays on its own device and in its own precision.

    The VAE's latents are the network's divided by its ``scaling_factor`` (sd-vae-ft: 0.18215, as the samplers of DiT, SiT and
    REPA); where its configuration has ``latents_mean`` and ``latents_std``, by channel, as diffusers' pipelines for SDXL.
    """

    vae: Any

    @classmethod
    def of(cls, vae: Any, channels: int) -> "Decoder":
        """One for latents of ``channels``.  Raises ``TypeError`` for no VAE, ``ValueError`` for another."""
        taken = getattr(getattr(vae, "config", None), "latent_channels", None)
        if taken is None or not hasattr(vae, "decode"):
            raise TypeError(f"vae must be an autoencoder of diffusers such as AutoencoderKL, got a {type(vae).__name__}")
        check_channels(taken, channels, "make pictures")
        return cls(vae)

    @classmethod
    def read(cls, folder: Path, dtype: torch.dtype, device: torch.device, variant: str | None = None) -> "Decoder":
        """That of a folder which :func:`..saved_files.vae_folder` found; without files of ``variant``, of the plain ones.

        Raises ``OSError`` or ``ValueError``, in one sentence, for weights that are not there or do not fit.
        """
        import diffusers

        names = [file.name for file in folder.iterdir()]
        if not component_weights(names, variant) and not component_weights(names, None):
            raise FileNotFoundError(f"{folder} has a {MODEL_CONFIG} and no weights of a VAE")
        own = variant if variant is not None and component_weights(names, variant) else None
        kind = getattr(diffusers, read_json(folder / MODEL_CONFIG)["_class_name"])
        try:
            vae, report = kind.from_pretrained(str(folder), dtype=dtype, variant=own, output_loading_info=True)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{folder} holds no VAE that can be read: {' '.join(str(error).split())}") from error
        if report["missing_keys"]:  # diffusers would leave random numbers there
            first, *others = sorted(report["missing_keys"])
            raise ValueError(f"the weights in {folder} lack {first!r} and {len(others)} more tensors of the {kind.__name__}")
        return cls(vae.to(device).requires_grad_(False))

    @property
    def factor(self) -> int:
        """Pixels per latent: every block of the autoencoder but the last halves the picture."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def decoded(self, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] of the network -> what the VAE makes of them, about [-1, 1], on its device."""
        return decoded(self.vae, self._without_statistics(latents))

    def pictures(self, latents: Tensor, max_batch: int | None = None) -> list:
        """Latents [B, C, H, W] of the network -> B PIL images, ``max_batch`` at a time; as :func:`.images.check_finite`."""
        check_finite(latents)
        from diffusers.image_processor import VaeImageProcessor

        return decode_latents(self.vae, VaeImageProcessor(), self._without_statistics(latents), max_batch)

    def _without_statistics(self, latents: Tensor) -> Tensor:
        mean, std = self.vae.config.get("latents_mean"), self.vae.config.get("latents_std")
        if mean is None or std is None:
            return latents
        mean, std = (torch.tensor(values, device=latents.device).view(1, -1, 1, 1) for values in (mean, std))
        return latents.float() * std + mean * latent_affine(self.vae)[0]
