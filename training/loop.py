"""The training loop: AdamW, EMA, resume, checkpoints and a log."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segue.models.sit import SiT
from segue.models.spec import SiTSpec

from .herbarium import MAX_BATCHES, herbarium_loader
from .objective import logit_normal_time, plain_loss
from .run_folder import RunFolder, Start
from .settings import TrainSettings
from .streams import stream_generator

LOG_EVERY = 50

Callback = Callable[["Trainer", dict[str, float]], bool | None]


class Trainer:
    """Trains one network in one folder (see :class:`.run_folder.RunFolder`).

    The network, every batch and every draw of noise depend on the settings and the step alone, so a run that was resumed
    equals one that was not, bit for bit, on one machine with one number of threads, if its length is given in steps: with
    ``minutes`` the learning rate follows the clock.
    """

    def __init__(self, spec: SiTSpec, settings: TrainSettings, folder: str | Path, start: Start = "new"):
        self.spec, self.settings, self.folder = spec, settings, RunFolder(folder)
        self.folder.open(spec, settings, start)
        self.step = 0
        self.seconds = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = SiT(spec).initialize().to(settings.device)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
        )
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
            self.optimizer.load_state_dict(state["optimizer"])
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

    def train_step(self, x0: Tensor, labels: Tensor) -> dict[str, float]:
        """One optimiser step on images x0 [B, C, H, W] and labels [B]; returns the losses and the gradient's norm."""
        losses = self._losses(x0, labels)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm.item()} at step {self.step}; the last checkpoint was kept")
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        self.step += 1
        return {name: value.item() for name, value in losses.items()} | {"gradient": norm.item()}

    def _losses(self, x0: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The losses at noise levels, noise and dropped labels that depend on the seed and the step only."""
        s = self.settings
        generator = stream_generator(s.seed, MAX_BATCHES + self.step)
        labels = s.dropout(labels, self.spec, generator)
        sigma = logit_normal_time(x0.shape[0], generator)
        eps = torch.randn(x0.shape, generator=generator)
        x0, labels, sigma, eps = (tensor.to(s.device) for tensor in (x0, labels, sigma, eps))
        with torch.autocast(torch.device(s.device).type, torch.bfloat16, enabled=s.dtype == "bfloat16"):
            return plain_loss(self.model, x0, labels, sigma, eps, s.exit_weight)

    def run(self, callback: Callback | None = None) -> bool:
        """Train to the end, or until ``callback(trainer, losses)`` returns False; both are saved.

        The callback runs after every step.  Returns whether the run reached its end.  An exception leaves the last checkpoint
        as it was.
        """
        s = self.settings
        batches = iter(herbarium_loader(s.batch_size, s.seed, self.step, s.workers))
        window: list[dict[str, float]] = []
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
            if finished or stopped or self.step % s.checkpoint_every == 0:
                self.save()
            if stopped and not finished:
                return False
        return True

    def _log(self, window: list[dict[str, float]]) -> None:
        """Append the means over the steps since the last row."""
        rate = self.step * self.settings.batch_size / max(self.seconds, 1e-9)
        row = {"step": self.step, "seconds": round(self.seconds, 1), "images_per_s": round(rate, 2), "lr": self.learning_rate()}
        means = {name: round(sum(losses[name] for losses in window) / len(window), 5) for name in window[0]}
        self.folder.log(row | means)
