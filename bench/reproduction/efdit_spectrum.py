"""A picture of radial spectra: pictures that were made larger, beside real ones of that size."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from segue.engine.images import read_png, save_png

from ..figures import new_figure, picture_of
from ..pictures.quality_cost import GREY

COLOURS = ("#14532d", "#2f6fb5", "#c07f12", "#777d87")
DPI = 90


def draw_spectrum(path: Path, case: str, count: int, spectra: Mapping[str, Tensor]) -> None:
    """Draw power over radial frequency, [rings] each, into a PNG at ``path``; ``ValueError`` without matplotlib.

    Each of ``spectra`` is the mean of ``count`` pictures of a ``case``, which the picture says, and its record.
    """
    with new_figure(5.2, 3.4, DPI) as figure:
        axes = figure.add_subplot()
        for (name, spectrum), colour in zip(spectra.items(), COLOURS, strict=True):
            axes.semilogy(range(1, len(spectrum)), spectrum[1:].clamp_min(1e-6), label=name, color=colour)
        axes.axvline((len(next(iter(spectra.values()))) - 1) / 2, color=GREY, linestyle=":", linewidth=1)
        axes.set_xlabel("cycles a picture")
        axes.set_ylabel("power")
        axes.legend(frameon=False, title=f"mean of {count} each")
        picture = picture_of(figure)
    record = {"case": case, "count": count, "spectra": {name: spectrum.tolist() for name, spectrum in spectra.items()}}
    save_png(picture, path, "segue reproduce efdit, spectra", record)


def pictured(path: Path, case: str) -> int:
    """Of how many pictures each spectrum in the picture at ``path`` is the mean; 0 where there is none of this ``case``."""
    try:
        record = read_png(path)[1]
    except (OSError, ValueError):
        return 0
    return record.get("count", 0) if record.get("case") == case else 0
