"""Latents to pictures, and PNG files that carry how they were made."""

import json
from pathlib import Path
from typing import IO

import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

PIXEL_CHANNELS = 3
RECORD_CHUNK, PARAMETERS_CHUNK = "segue", "parameters"  # the second is the one that other tools read


def check_pixels(channels: int) -> None:
    """Raise ``ValueError`` unless latents with that many channels are pixels."""
    if channels != PIXEL_CHANNELS:
        raise ValueError(
            f"latents with {channels} channels are not pixels: give the VAE that decodes them, or take the latents"
        )


def check_finite(latents: Tensor) -> None:
    """Raise ``FloatingPointError`` with the samples [B, ...] that hold what no picture can show."""
    finite = torch.isfinite(latents).flatten(1).all(dim=1)
    if not finite.all():
        wrong = ", ".join(str(index) for index in torch.nonzero(~finite).flatten().tolist())
        where = "check_finite (--check-finite) names the call and the branch where that began"
        raise FloatingPointError(f"the numbers of sample {wrong} are not all finite: {where}")


def latents_to_images(latents: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in [-1, 1] -> B RGB images.

    Raises ``ValueError`` for latents that are not pixels, ``FloatingPointError`` where they are not finite.
    """
    check_pixels(latents.shape[1])
    check_finite(latents)
    pixels = ((latents.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in pixels]


def save_png(image: Image.Image, file: Path | IO[bytes], parameters: str, record: dict, smallest: bool = False) -> None:
    """Write a PNG with the ``parameters`` text chunk other tools read and a ``segue`` JSON chunk, over what is there.

    ``file``: where it is, or an open one; ``smallest``: in twice the time.  The same picture and record are the same bytes.
    Commands write by :class:`.files.NewFiles`.
    """
    info = PngImagePlugin.PngInfo()
    info.add_text(PARAMETERS_CHUNK, parameters)
    info.add_text(RECORD_CHUNK, json.dumps(record))
    image.save(file, format="PNG", pnginfo=info, optimize=smallest)


def read_png(path: Path) -> tuple[Image.Image, dict]:
    """A picture and its ``segue`` record.  Raises ``ValueError`` if it is no PNG or carries none, ``OSError`` if unreadable."""
    try:
        with Image.open(path) as file:
            file.load()
            chunk, image = file.info.get(RECORD_CHUNK), file.convert("RGB")
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} is not a picture: {error}") from None
    if not chunk:
        raise ValueError(f"{path} carries no {RECORD_CHUNK!r} record; only unchanged pictures by Segue can be redrawn")
    try:
        record = json.loads(chunk)
    except ValueError as error:
        raise ValueError(f"the {RECORD_CHUNK!r} record of {path} is not valid JSON: {error}") from None
    return image, record
