"""The log of a run as a picture: its losses over the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from segue.engine.files import whole_file

NOT_LOSSES = {"step", "seconds", "images_per_s", "lr", "gradient"}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw_curve(rows: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Draw every loss of the rows of a log, on logarithmic axes, as a PNG file that appears whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    names = [name for name in rows[-1] if name not in NOT_LOSSES] if rows else []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get(name, 0) > 0]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2) if points else None
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_yscale("log")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend()
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=120)
