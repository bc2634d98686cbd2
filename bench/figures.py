"""Figures of matplotlib, if it is installed, in one style and without a display."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from PIL import Image

STYLE = {"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9aa0a8"}


@contextmanager
def new_figure(width: float, height: float, dpi: int, layout: str | None = "constrained") -> Iterator[Any]:
    """An empty figure of ``width`` x ``height`` inches, to be filled and made a picture inside.

    ``ValueError`` without matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError("the picture needs matplotlib, which is not installed (pip install 'segue[plots]')") from None
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout=layout)


def picture_of(figure: Any) -> Image.Image:
    """What a figure shows, in RGB."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return Image.open(drawn).convert("RGB")
