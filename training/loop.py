"""The training loop: AdamW, EMA, resume, checkpoints and a log."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segue.models.classifiers import ClassifierSpec

from .data.herbarium import Herbarium
from .data.source import MAX_BATCHES, batch_loader
from .run_folder import RunFolder, Start
from .settings import TrainSettings
from .step import TrainingStep, load_optimizer, make_optimizer
from .streams import stream_generator
from .task import ClassificationTask, Spec, Task, VelocityTask

LOG_EVERY = 50

Callback = Callable[["Trainer", dict[str, Tensor]], bool | None]


def task_of(spec: Spec, settings: TrainSettings) -> Task:
    """What a network of this kind is trained to do."""
    if isinstance(spec, ClassifierSpec):
        return ClassificationTask(spec)
    return VelocityTask(spec, settings.dropout, settings.exit_weight)


class Trainer:
    """Trains one network in one folder (see :class:`.run_folder.RunFolder`).

    The network, every batch and every draw of noise depend on the settings and the step alone, so a run that was resumed
    equals one that was not, bit for bit, on one machine with one number of threads, if its length is given in steps: with
    ``minutes`` the learning rate follows the clock.
    """

    def __init__(self, spec: Spec, settings: TrainSettings, folder: str | Path, start: Start = "new"):
        self.spec, self.settings, self.folder = spec, settings, RunFolder(folder)
        self.folder.open(spec, settings, start)
        self.task = task_of(spec, settings)
        self.step = 0
        self.seconds = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = self.task.network().to(settings.device)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self.optimizer = make_optimizer(self.model, settings)
        self.one_step = TrainingStep(self.model, self.ema, self.optimizer, self.task, settings)
        if start == "resume":
            self._resume()
        if settings.compile:
            self.model.compile()

    # --- checkpoints ---------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        state = self.folder.load_state()
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            load_optimizer(self.optimizer, state["optimizer"], self.settings)
            self.step, self.seconds = state["step"], state["seconds"]
        self.folder.cut_log(self.step)

    def save(self) -> None:
        """Write the EMA weights, the resume state and the record."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        self.folder.save(self.ema.module, state)
        self.folder.write_record(self.spec, self.settings, self.step, self.seconds)

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

    def train_step(self, x0: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One optimiser step on images x0 [B, C, H, W] and labels [B]; the losses and the gradient's norm, on the device.

        Its random numbers depend on the seed and the step only.
        """
        drawn = self.task.draw(x0, labels, stream_generator(self.settings.seed, MAX_BATCHES + self.step))
        try:
            losses = self.one_step(drawn, self.learning_rate())
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} at step {self.step}; the last checkpoint was kept") from None
        self.step += 1
        return losses

    def run(self, callback: Callback | None = None) -> bool:
        """Train to the end, or until ``callback(trainer, losses)`` returns False; both are saved.

        The callback runs after every step; to read a loss is to wait for the device.  Returns whether the run reached its end.
        An exception leaves the last checkpoint as it was.
        """
        s = self.settings
        batches = iter(batch_loader(Herbarium(), s.batch_size, s.seed, self.step, s.workers))
        window: list[dict[str, Tensor]] = []
        while self.progress < 1:
            began = time.perf_counter()
            losses = self.train_step(*next(batches))
            self.seconds += time.perf_counter() - began
            window.append(losses)
            finished = self.progress >= 1
            if finished or self.step % LOG_EVERY == 0:
                self._log(window)
                window = []
            stopped = callback is not None and callback(self, losses) is False
            saves = finished or stopped or self.step % s.checkpoint_every == 0
            keeps = s.snapshot_every and self.step % s.snapshot_every == 0
            if saves or keeps:
                self._check_finite(losses)
            if saves:
                self.save()
            if keeps:
                self.folder.save_snapshot(self.ema.module, self.step)
            if stopped and not finished:
                return False
        return True

    def _check_finite(self, losses: dict[str, Tensor]) -> None:
        """A gradient that was not finite makes all later ones so: raise before weights like these are saved."""
        norm = losses["gradient"].item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm} before step {self.step}; the last checkpoint was kept")

    def _log(self, window: list[dict[str, Tensor]]) -> None:
        """Append the means over the steps since the last row."""
        self._check_finite(window[-1])
        rate = self.step * self.settings.batch_size / max(self.seconds, 1e-9)
        row = {"step": self.step, "seconds": round(self.seconds, 1), "images_per_s": round(rate, 2), "lr": self.learning_rate()}
        table = torch.stack([torch.stack(list(losses.values())) for losses in window]).double().mean(0).tolist()
        self.folder.log(row | {name: round(mean, 5) for name, mean in zip(window[0], table, strict=True)})
