"""A folder of images per class, or folders within folders, of which one level gives the superclasses."""

from collections.abc import Mapping
from pathlib import Path

from .classes import classes_of_paths, listed
from .image_files import is_image
from .labelled_files import LabelledFiles, files_under


def read_image_folder(root: Path, tier: int | str | None = None, files: Mapping[str, int] | None = None) -> LabelledFiles:
    """The images of ``root/class/*`` or ``root/.../superclass/class/*``, sorted by name; classes in the order of their paths.

    ``tier`` as in :func:`~.classes.classes_of_paths`; ``files`` are those of ``root``, if they were listed already.  Raises
    ``ValueError`` or ``OSError`` for a folder without images, images beside the classes' folders, or folders of unequal depth.
    """
    files = files_under(root) if files is None else files
    names = tuple(name for name in files if is_image(name))
    if not names:
        raise ValueError(f"{root} holds no images")
    paths = [tuple(name.split("/")[:-1]) for name in names]
    loose = [name for name, path in zip(names, paths, strict=True) if not path]
    if loose:
        raise ValueError(
            f"{root} holds {len(loose):,} images beside the folders of the classes ({listed(loose)}); "
            "every class is a folder, and images without classes are one class"
        )
    deep = {len(path): "/".join(path) for path in paths}
    if len(deep) > 1:
        shallow, deepest = deep[min(deep)], deep[max(deep)]
        raise ValueError(
            f"{root} holds classes on several levels ({shallow!r} and {deepest!r}); all images must lie equally deep"
        )
    labels, classes, notes = classes_of_paths(paths, tier, str(root))
    others = [name for name in files if not is_image(name)]
    if others:
        notes += (f"{len(others):,} files that are no images are left out: {listed(others)}",)
    return LabelledFiles(root, names, tuple(files[name] for name in names), labels, classes, notes)
