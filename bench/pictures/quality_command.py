"""``segue bench quality``: from options to the picture of quality against cost."""

from collections.abc import Sequence
from pathlib import Path

import torch

from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine
from segue.engine.files import check_writable, refuse_existing

from ..quality.judges import named_judge
from ..quality.trial import networks_of
from ..rows import read_rows
from .measured import Measured
from .quality_cost import draw_quality_cost


def plot_quality(out: Path, model: str | None, judges: Sequence[str], scores: Path, force: bool) -> None:
    """Draw the rows of a model, as the judges saw them; raises ``ValueError`` where there are none."""
    if out.suffix != ".png":
        raise ValueError(f"the picture is a PNG file, got {out}")
    check_writable(out, folder=False)
    if not force:
        refuse_existing(out)
    rows = read_rows(scores)
    engine = open_engine(Source(model, device="cpu", dtype="float32"))
    names = [named_judge(judge, torch.device("cpu")).name for judge in judges]
    seen = [Measured.of(rows, networks_of(engine), name, scores) for name in names]
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_quality_cost(out, seen, engine.spec)
    print(f"wrote {out}")
