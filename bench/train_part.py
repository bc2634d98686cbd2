"""The last part of a visit to a GPU: train the herbarium at 64 x 64 for some minutes, and leave one small file.

``python -m segue.bench.train_part --out FOLDER``; the run's own folder, hundreds of megabytes, is gone with it.
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from segue.training.export import export_run
from segue.training.loop import Trainer
from segue.training.recipes import get_recipe
from segue.training.run_folder import LOG

from .rows import read_rows
from .telemetry import device_name

RECIPE = "herbarium-64"
FILE = f"{RECIPE}.safetensors"
CLOSING_S = 25.0  # of the limit: to start, and for the last checkpoint and the file
WORKERS = 8  # processes that draw leaves


def rows_of_card(results: Path, device: str) -> int:
    """How many rows of times on ``device`` are committed in the folder ``results``."""
    found = [row for path in sorted(results.glob("*.jsonl")) for row in read_rows(path)]
    return sum(row.device == device and row.metric.startswith("latency") for row in found)


def train(out: Path, seconds: float, device: str = "cuda") -> None:
    """Train for at most ``seconds`` in all; leaves ``herbarium-64.safetensors`` and ``log.jsonl`` in the folder ``out``."""
    recipe = get_recipe(RECIPE)
    minutes = max(seconds - CLOSING_S, 1.0) / 60
    settings = replace(recipe.settings, device=device, minutes=minutes, workers=WORKERS, snapshot_every=0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe.spec, settings, Path(folder) / "run", source=recipe.source)
        trainer.run()
        export_run(trainer.folder.path, out / FILE)
        shutil.copy(trainer.folder.path / LOG, out / LOG)
    print(f"step {trainer.step}, {trainer.step * settings.batch_size} images in {trainer.seconds:.0f} s: {out / FILE}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit-seconds", type=float, default=240.0)
    parser.add_argument("--results", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("training here needs a CUDA device, and this machine has none")
    card = device_name(torch.device("cuda"))
    if not rows_of_card(options.results, card):
        raise SystemExit(f"no times of {card} are committed in {options.results}: measure them first, then train")
    options.out.mkdir(parents=True, exist_ok=True)
    train(options.out, options.limit_seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
