"""A picture of radial spectra: pictures that were made larger, beside real ones of that size."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from torch import Tensor

COLOURS = ("#14532d", "#2f6fb5", "#c07f12", "#777d87")
DPI = 90


def draw_spectrum(path: Path, spectra: Mapping[str, Tensor]) -> None:
    """Draw power over radial frequency, [rings] each, into a PNG at ``path``; ``ValueError`` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("the picture needs matplotlib, which is not installed (pip install 'segue[plots]')") from None
    from segue.engine.files import whole_file

    figure = Figure(figsize=(5.2, 3.4), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    for (name, spectrum), colour in zip(spectra.items(), COLOURS, strict=True):
        axes.semilogy(range(1, len(spectrum)), spectrum[1:].clamp_min(1e-6), label=name, color=colour)
    axes.axvline((len(next(iter(spectra.values()))) - 1) / 2, color="#bbbbbb", linestyle=":", linewidth=1)
    axes.set_xlabel("cycles a picture")
    axes.set_ylabel("power")
    axes.legend(frameon=False)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    with whole_file(path) as part:
        part.write_bytes(drawn.getvalue())
