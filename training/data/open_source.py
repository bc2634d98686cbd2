"""What ``--data`` means: the herbarium, a folder of images or of latents, IDX files, or a table, told by what is there."""

from collections.abc import Mapping
from pathlib import Path

from .classes import check_tier, listed
from .dataset_json import FILE
from .finite import FiniteSource
from .herbarium import Herbarium
from .idx_source import IdxSource, is_idx
from .image_files import is_image
from .image_folder import read_image_folder
from .image_source import ImageSource, check_flip
from .image_table import SUFFIXES, fits_table, read_image_table
from .labelled_files import LabelledFiles, files_under
from .latent_layout import FEATURES, IMAGES
from .latent_source import LatentSource, is_moments
from .listed_images import read_listed_images
from .source import Source, tiers_of

KNOWN = (
    f"{Herbarium.name}, a folder of images per class, a CSV or TSV of images and classes, a folder of latents with a {FILE}, "
    "or a folder with the IDX files of MNIST or Fashion-MNIST"
)


def open_source(source: str | Path, *, size: int | None = None, flip: bool = False, tier: int | str | None = None) -> Source:
    """The source that ``source`` names; what it is, is told by its content.

    ``size`` cuts images to squares of that many pixels (of IDX files: pads them); ``flip`` mirrors every second one by chance;
    ``tier`` chooses the superclasses: of nested folders a level, 1 directly above the class (the default), of a table a column
    (by default ``parent`` or ``superclass``), 0 for none, several for tiers above one another: ``1,2``, ``genus,family``.

    Raises ``FileNotFoundError`` or ``ValueError`` in one sentence for what fits nothing or several, and for an option that does
    not apply.
    """
    tier = check_tier(tier)
    check_flip(flip)
    path = Path(source)
    if source == Herbarium.name:
        if path.exists():
            raise ValueError(f"{source!r} is a data set of Segue and a file or folder here; write ./{source} for that")
        _refuse({"size": size, "flip": flip, "tier": tier}, "the herbarium is drawn as it is")
        return Herbarium()
    kind, files = _kind(source)
    if kind == LatentSource.kind:
        _refuse({"size": size, "flip": flip}, f"{source} holds latents; images are cut and mirrored before they are encoded")
        return LatentSource(path, tier, files)
    if kind == IdxSource.kind:
        _refuse({"tier": tier}, f"{source} holds IDX files, which have no superclasses")
        return IdxSource(path, size=size, flip=flip)
    return ImageSource(_name(path), _labelled(path, files, tier), size, flip)


def open_images(source: str | Path, size: int | None = None, tier: int | str | None = None) -> ImageSource:
    """The images that ``source`` names, a folder or a table; raises as :func:`open_source`, and for anything else."""
    kind, files = _kind(source)
    if kind != ImageSource.kind:
        raise ValueError(f"{source} holds {kind}, not image files with classes")
    return ImageSource(_name(Path(source)), _labelled(Path(source), files, check_tier(tier)), size)


def describe(source: Source) -> list[str]:
    """What was found, in a sentence, and what was decided about it, in one each."""
    channels, height, width = source.shape
    many = f"{len(source):,} {source.kind}" if isinstance(source, FiniteSource) else "endless samples"
    tiers = f" in {max(source.parents) + 1:,} superclasses" if source.parents else ""
    tiers += "".join(f", in {max(tier) + 1:,} of tier {number}" for number, tier in enumerate(tiers_of(source), 2))
    classes = f"{source.num_classes:,} {'class' if source.num_classes == 1 else 'classes'}{tiers}"
    found = f"{source.name}: {many} of {classes}, {channels} x {height} x {width}"
    return [found, *(source.notes if isinstance(source, FiniteSource) else ())]


def _refuse(options: Mapping[str, object], reason: str) -> None:
    for name, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"{reason}; {name}={value!r} does not apply")


def _name(path: Path) -> str:
    return path.resolve().stem if path.is_file() else path.resolve().name


def _kind(source: str | Path) -> tuple[str, dict[str, int]]:
    """What ``source`` holds, and the files of a folder with their sizes."""
    path = Path(source)
    if path.is_file():
        if fits_table(path):
            return ImageSource.kind, {}
        if path.suffix.lower() in SUFFIXES:
            read_image_table(path)  # says what it lacks
        raise ValueError(f"{source} is a file, and no CSV or TSV of images and classes; data is {KNOWN}")
    if not path.is_dir():
        raise FileNotFoundError(f"{str(source)!r} is no file or folder; data is {KNOWN}")
    files = files_under(path)
    return _kind_of_folder(path, files), files


def _kind_of_folder(path: Path, files: Mapping[str, int]) -> str:
    latents = [name for name in files if is_moments(name)]
    repa = any(name.startswith(f"{FEATURES}/") for name in latents)
    images = [name for name in files if is_image(name) and not (repa and name.startswith(f"{IMAGES}/"))]
    idx = [name for name in files if is_idx(name)]
    tables = [name for name in files if "/" not in name and fits_table(path / name)]
    found = {LatentSource.kind: latents, ImageSource.kind: images, IdxSource.kind: idx, "a table of images": tables}
    fitting = {kind: names for kind, names in found.items() if names}
    if not fitting:
        raise ValueError(f"{path} holds no data: expected {KNOWN}; it has {listed(list(files)) or 'nothing'}")
    if len(fitting) > 1:
        several = " and ".join(f"{kind} ({names[0]})" for kind, names in fitting.items())
        raise ValueError(f"{path} holds {several}; give one of them, a folder that holds nothing else or the table itself")
    (kind,) = fitting
    if kind == "a table of images":
        raise ValueError(f"{path} holds {listed(tables)} and no images of its own; give the table itself")
    return kind


def _labelled(path: Path, files: Mapping[str, int], tier: int | str | None) -> LabelledFiles:
    if path.is_file():
        return read_image_table(path, tier)
    if FILE in files:
        return read_listed_images(path, tier, files)
    inside = [name for name in files if name.endswith(f"/{FILE}")]
    if inside:
        raise ValueError(f"{path} holds labels in {inside[0]}; give its folder, {path / inside[0].removesuffix(f'/{FILE}')}")
    return read_image_folder(path, tier, files)
