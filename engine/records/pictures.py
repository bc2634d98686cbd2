"""Pictures as files that carry the record of how they were made."""

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..files import NewFiles, check_writable, refuse_existing
from ..images import save_png
from .provenance import Record, parameters_text

SLUG_LENGTH = 40  # letters, of up to 4 bytes: file systems take 255 bytes
CAPTION_LENGTH = 48
OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npz")


def check_place(out: Path, named: bool, force: bool) -> bool:
    """Whether ``out`` is a folder, not a PNG file.  ``named``: by the user, so that a file there is refused without ``force``.

    Raises ``ValueError`` or ``OSError`` if nothing can be written there.
    """
    if out.suffix.lower() in OTHER_FORMATS:
        raise ValueError(f"pictures are written as PNG, which carries their record, got {out}")
    folder = out.suffix.lower() != ".png"
    check_writable(out, folder)
    if named and not folder and not force:
        refuse_existing(out)
    return folder


def short_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Prompts on one line each, cut to the length of a caption."""
    return tuple(textwrap.shorten(prompt, CAPTION_LENGTH, placeholder="...") for prompt in prompts)


def write_picture(new: NewFiles, file: Path, image: Image.Image, record: Record, names: tuple[str, ...]) -> Path:
    """Write one picture with its record; returns where it is."""
    text, chunk = parameters_text(record, names), record.to_dict()
    return new.write(file, lambda path: save_png(image, path, text, chunk))


def picture_name(names: tuple[str, ...], label: int, seed: int) -> str:
    """``003-acerites-dentata-seed7.png``, in letters of any alphabet; names that differ in case only are one."""
    name = unicodedata.normalize("NFKC", names[label]).casefold() if names else ""
    slug = "-".join(re.findall(r"[^\W_]+", name))[:SLUG_LENGTH]
    return "-".join(filter(None, (f"{label:03d}", slug, f"seed{seed}"))) + ".png"
