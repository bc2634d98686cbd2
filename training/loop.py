"""The training loop: steps, checkpoints, resume and a log, in one process or several."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.models.classifiers import ClassifierSpec
from segue.models.enhancer import EnhancerSpec

from .data.herbarium import Herbarium
from .data.source import MAX_BATCHES, Source, batch_loader
from .enhancement import EnhancementTask
from .objectives.velocity_task import VelocityTask
from .processes import Processes, training_processes
from .run_folder import RunFolder, Start
from .settings import TrainSettings
from .step import Trained, TrainingStep
from .streams import stream_generator
from .task import ClassificationTask, Drawn, Spec, Task
from .trained_parts import freeze_all_but

LOG_EVERY = 50
AGREE_EVERY = 10  # steps after which several processes agree on the clock and on stopping

Callback = Callable[["Trainer", dict[str, Tensor]], bool | None]


def task_of(spec: Spec, settings: TrainSettings) -> Task:
    """What a network of this kind is trained to do."""
    if isinstance(spec, ClassifierSpec):
        return ClassificationTask(spec)
    if isinstance(spec, EnhancerSpec):
        return EnhancementTask(spec)
    padded = settings.captured or settings.compile
    return VelocityTask(spec, settings.dropout, settings.exit_weight, settings.objective, padded)


class Trainer:
    """Trains one network in one folder (see :class:`.run_folder.RunFolder`).

    The network, every batch and every draw of noise depend on the settings and the step alone, so a run that was resumed
    equals one that was not, bit for bit, on one machine with one number of threads, if its length is given in steps: with
    ``minutes`` the learning rate follows the clock.  A step reads ``micro_batches`` parts, which the processes share: a run
    of two processes is that of one, up to the order in which gradients are added.
    """

    def __init__(
        self,
        spec: Spec,
        settings: TrainSettings,
        folder: str | Path,
        start: Start = "new",
        *,
        source: Source | None = None,
        initial: Mapping[str, Tensor] | None = None,
        task: Task | None = None,
        facts: Mapping[str, Any] | None = None,
        processes: Processes | None = None,
    ):
        """``source``: what it is trained on (default the herbarium).  ``initial``: weights by name that it starts from.

        ``task`` replaces what a network of this ``spec`` is trained to do.  ``facts``, JSON values by name, are kept in the
        run's record and in the header of its weights.  Raises ``ValueError`` or ``OSError``, before any work.
        """
        self.processes = processes or training_processes(settings.device)
        settings = replace(settings, device=self.processes.device)
        self.source = Herbarium() if source is None else source
        self.spec, self.settings, self.folder = spec, settings, RunFolder(folder)
        self.facts = {"data": self.source.fingerprint()} | dict(facts or {})
        self.task = task or task_of(spec, settings)
        self._parts = self._own_parts()
        self.step = 0
        self.seconds = 0.0
        if self.processes.first:
            self.folder.check(spec, settings, self.facts, start)
        self.processes.wait()
        main, companion = self._networks(initial or {})
        if self.processes.first and start != "resume":
            self.folder.begin(spec, settings, self.facts)
        self.processes.wait()
        self.trained = {"main": main} | ({} if companion is None else {"companion": companion})
        self.one_step = TrainingStep(main, companion, self.task, settings, self.processes)
        if start == "resume":
            self._resume()
        if settings.compile:
            self.model.compile()

    def _networks(self, initial: Mapping[str, Tensor]) -> tuple[Trained, Trained | None]:
        s = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            self.model = self.task.network()
            companion = self.task.companion()
        self.model.load_state_dict(dict(initial), strict=False)
        freeze_all_but(self.model, s.trained)
        main = Trained.of(self.model.to(s.device), s, self.processes)
        return main, None if companion is None else Trained.of(companion.to(s.device), s, self.processes)

    def _own_parts(self) -> range:
        """The parts of every batch that are this process's; ``ValueError`` where they cannot be shared equally."""
        s, processes = self.settings, self.processes
        if s.micro_batches % processes.count:
            raise ValueError(f"{processes.count} processes need as many micro_batches or a multiple, got {s.micro_batches}")
        if processes.count > 1 and s.captured:
            raise ValueError("a step is captured as a graph in one process only; give graph=False (--no-graph) for several")
        share = s.micro_batches // processes.count
        return range(processes.rank * share, (processes.rank + 1) * share)

    @property
    def average(self):
        """The average of the weights, see :class:`.average.WeightAverage`."""
        return self.trained["main"].average

    # --- checkpoints ---------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        state = self.folder.load_state()
        if state is not None:
            try:
                for name, trained in self.trained.items():
                    trained.load(state["networks"][name], self.settings)
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(f"the state in {self.folder.path} is of another network: {error}") from None
            self.step, self.seconds = state["step"], state["seconds"]
        if self.processes.first:
            self.folder.cut_log(self.step)

    def save(self) -> None:
        """Write the averaged weights, the resume state and the record."""
        networks = {name: trained.state() for name, trained in self.trained.items()}
        state = {"networks": networks, "step": self.step, "seconds": self.seconds}
        if "companion" in self.trained:
            self._write_average("companion", self.folder.companion)
        self._write_average("main", self.folder.weights())
        self.folder.save_state(state)
        self.folder.write_record(self.spec, self.settings, self.facts, self.step, self.seconds)

    def _write_average(self, name: str, path: Path) -> None:
        trained = self.trained[name]
        path.parent.mkdir(exist_ok=True)
        header = {"steps": str(self.step), "training": json.dumps(self.folder.facts_of(self.settings, self.facts))}
        with trained.average.in_place():
            self.task.write(trained.network, path, header)

    # --- the loop ------------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Fraction of the run done, by steps or by time, whichever is further."""
        limit = self.settings.minutes * 60
        return min(1.0, max(self.step / self.settings.steps, self.seconds / limit if limit else 0.0))

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to ``final_learning_rate`` of the peak."""
        s = self.settings
        warm = min(1.0, (self.step + 1) / max(1, s.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return s.learning_rate * warm * (s.final_learning_rate + (1 - s.final_learning_rate) * cosine)

    def batches(self):
        """The parts of the steps from the present one on that are this process's: (samples, labels) each."""
        s = self.settings
        size = s.batch_size // s.micro_batches
        return iter(batch_loader(self.source, size, s.seed, self.step, s.workers, s.micro_batches, self._parts))

    def train_step(self, *parts: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """One optimiser step on parts of a batch, samples [B, C, H, W] and labels [B] each; scalars on the device.

        They are the losses and the gradient's norm.  Its random numbers depend on the seed, the step and the part only.
        """
        drawn = [self._draw(index, *part) for index, part in zip(self._parts, parts, strict=True)]
        try:
            losses = self.one_step(self.step, drawn, self.learning_rate())
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} at step {self.step}; the last checkpoint was kept") from None
        self.step += 1
        return losses

    def _draw(self, part: int, x0: Tensor, labels: Tensor) -> Drawn:
        number = self.step * self.settings.micro_batches + part
        return self.task.draw(x0, labels, stream_generator(self.settings.seed, MAX_BATCHES + number), self.progress)

    def run(self, callback: Callback | None = None) -> bool:
        """Train to the end, or until ``callback(trainer, losses)`` returns False; both are saved.

        The callback runs after every step, in the first process alone; to read a loss is to wait for the device.  Returns
        whether the run reached its end.  An exception leaves the last checkpoint as it was.
        """
        s, batches = self.settings, self.batches()
        window: list[dict[str, Tensor]] = []
        stopped = False
        while self.progress < 1:
            began = time.perf_counter()
            losses = self.train_step(*(next(batches) for _ in self._parts))
            self.seconds += time.perf_counter() - began
            window.append(losses)
            if self.processes.first and callback is not None and callback(self, losses) is False:
                stopped = True
            stops = self._agree(stopped)
            finished = self.progress >= 1
            if finished or self.step % LOG_EVERY == 0:
                self._log(window)
                window = []
            self._keep(losses, finished or stops or self.step % s.checkpoint_every == 0)
            if stops and not finished:
                return False
        return True

    def _agree(self, stopped: bool) -> bool:
        """Whether to stop; of several processes, the first says so, and what the clock is, every few steps."""
        if self.processes.count == 1:
            return stopped
        if self.step % AGREE_EVERY and self.step < self.settings.steps:
            return False
        said, self.seconds = self.processes.of_the_first([float(stopped), self.seconds])
        return bool(said)

    def _keep(self, losses: dict[str, Tensor], saves: bool) -> None:
        """Write what this step is to leave, in the first process; the others wait."""
        keeps = self.settings.snapshot_every and self.step % self.settings.snapshot_every == 0
        if not saves and not keeps:
            return
        self._check_finite(losses)
        if self.processes.first:
            if keeps:  # before the state: a run that is killed between them makes it again
                self._write_average("main", self.folder.snapshot(self.step))
            if saves:
                self.save()
        self.processes.wait()

    def _check_finite(self, losses: dict[str, Tensor]) -> None:
        """A gradient that was not finite makes all later ones so: raise before weights like these are saved."""
        norm = losses["gradient"].item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm} before step {self.step}; the last checkpoint was kept")

    def _log(self, window: list[dict[str, Tensor]]) -> None:
        """Append the means over the steps since the last row, and over the processes."""
        self._check_finite(window[-1])
        table = torch.stack([torch.stack(list(losses.values())) for losses in window]).double().mean(0)
        means = self.processes.means(table).tolist()
        if not self.processes.first:
            return
        rate = self.step * self.settings.batch_size / max(self.seconds, 1e-9)
        row = {"step": self.step, "seconds": round(self.seconds, 1), "images_per_s": round(rate, 2), "lr": self.learning_rate()}
        self.folder.log(row | {name: round(mean, 5) for name, mean in zip(window[0], means, strict=True)})
