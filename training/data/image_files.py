"""One image file as RGB of a size: upright, on white, in 8 bits, and cropped to a square as ImageNet is for DiT and SiT."""

from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .unreadable import UnreadableSample

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
DIRECT = {"1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}  # modes that Pillow makes RGB without a decision
TRANSPARENT = {"LA", "La", "PA", "RGBA", "RGBa"}
SIXTEEN_BITS = 65535
WHITE = (255, 255, 255)
ORIENTATION = 0x0112  # EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = (5, 6, 7, 8)  # height and width change places


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image that is read."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as it is seen, from its header; raises :class:`~.unreadable.UnreadableSample`."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except Exception as error:
        raise _unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def read_image(path: Path, size: int | None = None) -> Tensor:
    """An image [3, H, W] uint8, with ``size`` its central square of that many pixels, else as large as it is.

    Turned as its EXIF orientation says; grey is three equal channels; transparency lies on white; 16 bits are rounded to 8;
    of an animation the first picture.  The crop is that of ADM, which DiT, SiT and REPA use: halved by boxes while the shorter
    side is at least twice ``size``, then bicubic to it.  Raises :class:`~.unreadable.UnreadableSample` for no whole image.
    """
    try:
        with Image.open(path) as file:
            image = _upright(as_rgb(file), file.getexif().get(ORIENTATION))
        if size is not None:
            image = central_square(image, size)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except Exception as error:  # decoders raise many types: SyntaxError, struct.error, zlib.error, MemoryError of a header
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UnreadableSample:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    reason = " ".join(reason.replace(f" {str(path)!r}", "").split())
    return UnreadableSample(f"{path} cannot be read as an image: {reason}")


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB in 8 bits.  Raises ``ValueError`` for pixels of other kinds, as floating-point ones."""
    image.load()
    if image.mode.startswith("I"):  # I;16 and, of a PNG or PGM of 16 bits in earlier releases of Pillow, I
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > SIXTEEN_BITS:
            raise ValueError(f"pixels in [{values.min()}, {values.max()}]; whole numbers must fit 16 bits")
        return Image.fromarray(((values * 255 + SIXTEEN_BITS // 2) // SIXTEEN_BITS).astype(np.uint8)).convert("RGB")
    if image.mode in TRANSPARENT or "transparency" in image.info:
        clear = image.convert("RGBA")
        ground = Image.new("RGBA", clear.size, (*WHITE, 255))
        return Image.alpha_composite(ground, clear).convert("RGB")
    if image.mode not in DIRECT | {"P"}:
        raise ValueError(f"its pixels are of Pillow's mode {image.mode!r}")
    return image.convert("RGB")


def central_square(image: Image.Image, size: int) -> Image.Image:
    """The central square of ``size`` pixels.  Source: guided-diffusion (ADM), which cut ImageNet so."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
