"""Latents to pictures: PIL images, grids, PNG files that carry the plan and the seed they were made with."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

PIXEL_CHANNELS = 3


def latents_to_images(latents: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in [-1, 1] -> B RGB images.  Raises ``ValueError`` for latents that are not pixels."""
    if latents.shape[1] != PIXEL_CHANNELS:
        raise ValueError(f"latents with {latents.shape[1]} channels are not pixels; decode them with the model's VAE")
    pixels = ((latents.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in pixels]


def grid(images: list[Image.Image], columns: int | None = None, zoom: int = 1, gap: int = 2) -> Image.Image:
    """Images of one size in a grid, row by row, each enlarged ``zoom`` times without smoothing."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].width * zoom, images[0].height * zoom
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        place = (i % columns * (width + gap), i // columns * (height + gap))
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), place)
    return sheet


def labelled_sheet(rows: list[tuple[str, list[Image.Image]]], zoom: int = 1, gap: int = 2, text: int = 15) -> Image.Image:
    """One row of images per rule, each under a line of text."""
    strips = [(label, grid(images, len(images), zoom, gap)) for label, images in rows]
    font = ImageFont.load_default(text)
    width = max(strip.width for _, strip in strips)
    band = text + 10
    sheet = Image.new("RGB", (width + 2 * gap, sum(strip.height + band for _, strip in strips) + gap), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for label, strip in strips:
        draw.text((gap + 2, top + 4), label, fill=(40, 40, 40), font=font)
        sheet.paste(strip, (gap, top + band))
        top += strip.height + band
    return sheet


def save_png(image: Image.Image, path: Path, parameters: str, record: dict) -> None:
    """Write a PNG whole or not at all, with the ``parameters`` text chunk other tools read and a ``segue`` JSON chunk."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters)
    info.add_text("segue", json.dumps(record))
    part = path.with_name(path.name + ".part")
    try:
        image.save(part, format="PNG", pnginfo=info)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
