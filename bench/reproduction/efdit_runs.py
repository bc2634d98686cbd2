"""The networks that ``segue reproduce efdit`` trains: with ProbSparse attention, and with tiered and flat labels."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from segue.models.attention_kind import spec_with_attention
from segue.models.spec import SiTSpec
from segue.training.data.herbarium import Herbarium
from segue.training.data.leaves import draw_leaves
from segue.training.data.source import Source
from segue.training.export import export_run
from segue.training.loop import Trainer
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.recipes import get_recipe
from segue.training.run_folder import RunFolder
from segue.training.settings import TrainSettings
from segue.training.starting_weights import starting_weights
from segue.training.streams import stream_generator

from ..quality.time_limit import OutOfTimeError, TimeLimit
from .objective_runs import train_within

PER_SPECIES = 16
SMALL = {"dim": 96, "depth": 6, "heads": 3, "exits": ()}  # the weak sibling's size


class FewLeaves(Herbarium):
    """The same ``each`` leaves of every species over and over; with ``tiered`` False the genera are not told."""

    name = "few leaves"

    def __init__(self, tiered: bool, each: int = PER_SPECIES, seed: int = 5):
        super().__init__()
        if not tiered:
            self.parents = ()
        self.labels = torch.arange(self.num_classes).repeat(each)
        self.leaves = draw_leaves(self.labels, torch.Generator().manual_seed(seed))

    def batch(self, index: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.labels), (size,), generator=stream_generator(seed, index))
        return self.leaves[chosen], self.labels[chosen]


def fine_tuned(folder: Path, attention: str, steps: int, limit: TimeLimit, echo: Callable[[str], None]) -> Path:
    """The herbarium fine-tuned with that ``attention``, as a file; full attention is the control of any other."""
    source = Herbarium()
    begun = starting_weights("herbarium", source)
    spec = replace(spec_with_attention(begun.spec, attention), name=f"herbarium-{attention}-{steps}")
    settings = TrainSettings(steps=steps, batch_size=32, learning_rate=1e-4, warmup=20, ema=0.98, dtype="float32")
    settings = replace(settings, dropout=LabelDropout(0.1, 0.1), checkpoint_every=100)
    return _trained(folder, spec, settings, source, begun.tensors, limit, echo)


def tiered_and_flat(
    folder: Path, steps: int, seeds: int, limit: TimeLimit, echo: Callable[[str], None]
) -> Iterator[tuple[str, Callable[[], Path]]]:
    """For every seed a network with tiered and one with flat labels: its name, and what trains it and gives its file."""
    recipe = get_recipe("herbarium")
    for seed in range(seeds):
        for kind in ("tiered", "flat"):
            source = FewLeaves(kind == "tiered")
            spec = replace(recipe.spec, name=f"{kind}-{steps}-{seed}", parents=source.parents, **SMALL)
            dropout = LabelDropout(0.1, 0.1 if source.parents else 0.0)
            settings = TrainSettings(steps=steps, batch_size=32, ema=0.99, dtype="float32", dropout=dropout, seed=seed)
            yield f"{kind}, seed {seed}", partial(_trained, folder, spec, settings, source, {}, limit, echo)


def _trained(
    folder: Path,
    spec: SiTSpec,
    settings: TrainSettings,
    source: Source,
    initial: dict[str, Tensor],
    limit: TimeLimit,
    echo: Callable[[str], None],
) -> Path:
    """Train to the end, where the run stopped, and export; what was exported already is left."""
    path = folder / f"{spec.name}.safetensors"
    if path.exists():
        return path
    start = "new" if RunFolder(folder / spec.name).record() is None else "resume"
    trainer = Trainer(spec, settings, folder / spec.name, start, source=source, initial=initial)
    echo(f"{spec.name}: {settings.steps} steps, from step {trainer.step}")
    limit.check(spec.name, 0.0)
    if not train_within(trainer, limit):
        raise OutOfTimeError(f"{spec.name}: stopped at step {trainer.step} of {settings.steps}")
    export_run(trainer.folder.path, path, "float32")
    return path
