"""Images whose labels stand in a ``dataset.json`` beside them, as EDM and REPA lay them out."""

from collections.abc import Mapping
from pathlib import Path

from .dataset_json import FILE, read_listing
from .image_files import is_image
from .labelled_files import LabelledFiles, files_under


def read_listed_images(root: Path, tier: int | str | None = None, files: Mapping[str, int] | None = None) -> LabelledFiles:
    """The images of ``root`` by the labels of its ``dataset.json``.  Raises ``ValueError`` for files that do not fit it."""
    files = files_under(root) if files is None else files
    listing = read_listing(root / FILE)
    images = {name: size for name, size in files.items() if is_image(name)}
    labels = listing.labels_of(images, "images")
    return LabelledFiles(root, tuple(images), tuple(images.values()), labels, listing.classes_with(tier))
