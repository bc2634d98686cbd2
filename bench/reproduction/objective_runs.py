"""Training runs of the objectives from one checkpoint, resumable at every level, each exported as a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segue.training.data.source import Source
from segue.training.export import export_run
from segue.training.interrupt import StopRequest
from segue.training.loop import Trainer
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.objectives.objective import PUBLISHED_WEIGHTS, Objective, Weak
from segue.training.run_folder import RunFolder
from segue.training.settings import TrainSettings
from segue.training.starting_weights import StartingWeights, starting_weights

from ..quality.time_limit import OutOfTimeError, TimeLimit

REPEATED: tuple[Weak, ...] = ("none", "segmented")  # by several seeds
DROPOUT = 0.1  # of everything, and of the species where there are superclasses


@dataclass(frozen=True)
class ObjectiveRun:
    """One objective from one seed."""

    weak: Weak
    seed: int

    @property
    def name(self) -> str:
        return f"{self.weak}-seed-{self.seed}"

    @property
    def objective(self) -> Objective:
        return Objective.published(self.weak)


def runs_of(objectives: Sequence[str], seeds: int) -> list[ObjectiveRun]:
    """Every objective of the first seed, then the others of those that are repeated; ``ValueError`` for an unknown one."""
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    for weak in objectives:
        if weak not in PUBLISHED_WEIGHTS:
            raise ValueError(f"unknown objective {weak!r}; there are: {', '.join(PUBLISHED_WEIGHTS)}")
    known = [weak for weak in PUBLISHED_WEIGHTS if weak in objectives]
    later = [ObjectiveRun(weak, seed) for seed in range(1, seeds) for weak in known if weak in REPEATED]
    return [*(ObjectiveRun(weak, 0) for weak in known), *later]


@dataclass(frozen=True)
class Training:
    """How every run is trained: from ``start`` on ``source``, by fields of :class:`TrainSettings`, in ``folder``."""

    start: str
    source: Source
    settings: dict[str, Any]
    folder: Path

    def settings_of(self, run: ObjectiveRun) -> TrainSettings:
        """Those of one run; ``ValueError`` for what is out of range."""
        dropout = LabelDropout(DROPOUT, DROPOUT if self.source.parents else 0.0)
        return TrainSettings(**self.settings, dropout=dropout, objective=run.objective, seed=run.seed)

    def weights(self) -> StartingWeights:
        """What all of them start from."""
        return starting_weights(self.start, self.source)

    def exported(self, run: ObjectiveRun) -> Path:
        """Where the averaged weights of a run are."""
        return self.folder / f"{run.name}.safetensors"

    def seconds_per_step(self, run: ObjectiveRun) -> float:
        """Of a run that is finished: its training time over its steps."""
        record = RunFolder(self.folder / run.name).existing()
        return float(record["seconds"]) / max(1, int(record["step"]))

    def trainer(self, run: ObjectiveRun, begun: StartingWeights) -> Trainer:
        """The trainer of a run, where it stopped; raises ``ValueError`` where the folder holds one by other settings."""
        spec = replace(begun.spec, name=f"{begun.spec.name}-{run.name}")
        folder = self.folder / run.name
        start: Any = "new" if RunFolder(folder).record() is None else "resume"
        facts = {"from": begun.facts}
        return Trainer(spec, self.settings_of(run), folder, start, source=self.source, initial=begun.tensors, facts=facts)

    def train(self, run: ObjectiveRun, begun: StartingWeights, limit: TimeLimit, echo: Callable[[str], None]) -> Path:
        """Train a run to its end and export it; what was exported already is left.  Returns the file.

        Raises :class:`OutOfTimeError` where the limit came first and ``KeyboardInterrupt`` at Ctrl-C; both are saved, and the
        next call goes on.
        """
        path = self.exported(run)
        if path.exists():
            return path
        trainer = self.trainer(run, begun)
        echo(f"{run.name}: {trainer.settings.steps} steps, from step {trainer.step}")
        limit.check(run.name, 0.0)
        if not train_within(trainer, limit):
            raise OutOfTimeError(f"{run.name}: stopped at step {trainer.step} of {trainer.settings.steps}")
        export_run(trainer.folder.path, path, "float32")
        return path


def train_within(trainer: Trainer, limit: TimeLimit) -> bool:
    """Train until the end, a signal or the limit; returns whether it was the end.  Raises ``KeyboardInterrupt`` at Ctrl-C."""
    from rich.console import Console

    from segue.training.progress import TrainingDisplay

    with StopRequest() as stop, TrainingDisplay(trainer, Console(stderr=True)) as display:

        def after_step(trainer: Trainer, losses: dict) -> bool:
            display.show(trainer, losses)
            return stop.signal is None and not limit.over

        finished = trainer.run(after_step)
    if stop.signal is not None and not finished:
        raise KeyboardInterrupt
    return finished
