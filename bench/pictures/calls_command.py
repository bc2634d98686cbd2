"""``segue bench calls``: from options to an animation of runs, call by call."""

from collections.abc import Sequence
from pathlib import Path

import torch

from segue.engine.device import resolve_device
from segue.engine.engine import Engine
from segue.engine.files import NewFiles, check_writable, refuse_existing
from segue.engine.labels import check_labels
from segue.engine.rules.presets import parse_rule

from ..quality.real_samples import HERBARIUM
from .call_strip import FORMATS, frames, save_animation
from .estimates import estimates

RULES, COLUMNS = ("none", "sgg"), 4
CLASSES = "2,8,21,26,39,44,13,31"  # of every genus, details that show at this size


def animate_calls(
    out: Path, rules: Sequence[str] | None, classes: str | None, seed: int, steps: int, device: str | None, force: bool
) -> None:
    """Draw the rules from the same noise, and write one frame for every call."""
    if out.suffix not in FORMATS:
        raise ValueError(f"the animation is a file that ends in {' or '.join(FORMATS)}, got {out}")
    check_writable(out, folder=False)
    if not force:
        refuse_existing(out)
    engine = Engine.from_pretrained(HERBARIUM, device=resolve_device(device), dtype=torch.float32)
    parsed = [parse_rule(text, engine.spec) for text in rules or RULES]
    labels = check_labels(classes or CLASSES, engine.spec)
    seeds = list(range(seed, seed + len(labels)))
    runs = [estimates(engine, rule, labels, seeds, steps) for rule in parsed]
    made = frames(runs, min(COLUMNS, len(labels)))
    path = NewFiles(force).write(out, lambda part: save_animation(part, made, out.suffix))
    print(f"{len(made)} frames of {made[0].width} x {made[0].height} in {path}, {path.stat().st_size / 1e3:.0f} kB")
