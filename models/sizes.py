"""Published sizes of DiT and SiT, and the conventions that tell their families apart.

Source: DiT (arXiv 2212.09748, table 1), SiT (arXiv 2401.08740), REPA (arXiv 2410.06940); the three share their tensor names.
"""

from dataclasses import dataclass
from typing import Any

from .spec import Prediction, SiTSpec, TimeInput, positive_integer


@dataclass(frozen=True)
class Size:
    """Depth, width and attention heads of one published size."""

    depth: int
    dim: int
    heads: int


@dataclass(frozen=True)
class Family:
    """What a network predicts, its time input, and whether it was published with learned-sigma outputs (2 C channels)."""

    title: str
    prediction: Prediction
    time: TimeInput
    learned_sigma: bool


SIZES = {"S": Size(12, 384, 6), "B": Size(12, 768, 12), "L": Size(24, 1024, 16), "XL": Size(28, 1152, 16)}
PATCHES = (2, 4, 8)
FAMILIES = {
    "dit": Family("DiT", "epsilon", "discrete", True),
    "sit": Family("SiT", "data_velocity", "data_time", True),  # the second half of the channels is never used
    "repa": Family("REPA", "velocity", "sigma", False),
}
VAE_FACTOR = 8  # pixels per latent in each direction


def family_of(name: str) -> Family:
    """The family of that name; raises ``ValueError`` with the known ones."""
    if name not in FAMILIES:
        raise ValueError(f"unknown model family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_spec(family: str, size: str, image_size: int = 256, **changes) -> SiTSpec:
    """The spec of a published model, as in ``family_spec("sit", "XL/2")``: ImageNet classes, 4 latent channels.

    ``image_size`` in pixels, a multiple of 8 times the patch; ``changes`` replace fields of the spec.
    """
    kind = family_of(family)
    letter, _, patch = str(size).partition("/")
    if letter not in SIZES or patch not in map(str, PATCHES):
        raise ValueError(f"unknown size {size!r}; write one of {', '.join(SIZES)} and a patch of 2, 4 or 8, as in XL/2")
    image_size = positive_integer("image_size", image_size)
    if image_size % (VAE_FACTOR * int(patch)):
        raise ValueError(f"image_size must be a positive multiple of {VAE_FACTOR * int(patch)}, got {image_size!r}")
    shape = SIZES[letter]
    settings: dict[str, Any] = {
        "name": f"{kind.title}-{size}-{image_size}",
        "channels": 4,
        "height": image_size // VAE_FACTOR,
        "width": image_size // VAE_FACTOR,
        "patch": int(patch),
        "dim": shape.dim,
        "depth": shape.depth,
        "heads": shape.heads,
        "prediction": kind.prediction,
        "time": kind.time,
    } | changes
    if kind.learned_sigma:
        settings.setdefault("out_channels", 2 * settings["channels"])
    return SiTSpec(**settings)


def dit_spec(size: str, image_size: int = 256, **changes) -> SiTSpec:
    """A published DiT: noise prediction on the discrete chain, learned sigma; see :func:`family_spec`."""
    return family_spec("dit", size, image_size, **changes)


def sit_spec(size: str, image_size: int = 256, **changes) -> SiTSpec:
    """A published SiT: velocity ``x0 - eps``, time 1 is data; see :func:`family_spec`."""
    return family_spec("sit", size, image_size, **changes)


def repa_spec(size: str, image_size: int = 256, **changes) -> SiTSpec:
    """A SiT as trained by REPA and SGG: velocity ``eps - x0``, time 1 is noise; see :func:`family_spec`."""
    return family_spec("repa", size, image_size, **changes)
