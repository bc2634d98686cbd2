"""Pictures as files that carry the record of how they were made."""

import re
import unicodedata
from pathlib import Path

from PIL import Image

from ..files import NewFiles
from ..images import save_png
from .provenance import Record, parameters_text

SLUG_LENGTH = 40  # letters, of up to 4 bytes: file systems take 255 bytes


def write_picture(new: NewFiles, file: Path, image: Image.Image, record: Record, names: tuple[str, ...]) -> Path:
    """Write one picture with its record; returns where it is."""
    text, chunk = parameters_text(record, names), record.to_dict()
    return new.write(file, lambda path: save_png(image, path, text, chunk))


def picture_name(names: tuple[str, ...], label: int, seed: int) -> str:
    """``003-acerites-dentata-seed7.png``, in letters of any alphabet; names that differ in case only are one."""
    name = unicodedata.normalize("NFKC", names[label]).casefold() if names else ""
    slug = "-".join(re.findall(r"[^\W_]+", name))[:SLUG_LENGTH]
    return "-".join(filter(None, (f"{label:03d}", slug, f"seed{seed}"))) + ".png"
