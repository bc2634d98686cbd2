"""How a training run shows itself: a progress bar on a terminal, a line now and then elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from .loop import LOG_EVERY, Trainer

SMOOTHING = 0.98  # a step
SHOW_EVERY = 10  # steps: to read a loss is to wait for the device


class TrainingDisplay:
    """Shows step, smoothed loss, images per second and the time that remains; enter it, then call :meth:`show` every step."""

    def __init__(self, trainer: Trainer, console: Console):
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(trainer.spec.name, total=1.0, status="first step")
        self.bar.update(self.task, completed=trainer.progress)
        self.first_step, self.first_progress = trainer.step, trainer.progress
        self.began = time.perf_counter()
        self.loss: float | None = None

    def __enter__(self) -> "TrainingDisplay":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def show(self, trainer: Trainer, losses: dict[str, Tensor]) -> None:
        if self.loss is not None and trainer.step % SHOW_EVERY and trainer.progress < 1:
            return
        loss, keep = losses["loss"].item(), SMOOTHING**SHOW_EVERY
        self.loss = loss if self.loss is None else keep * self.loss + (1 - keep) * loss
        status = self.status(trainer)
        self.bar.update(self.task, completed=trainer.progress, status=status)
        if not self.console.is_terminal and (trainer.step % LOG_EVERY == 0 or trainer.progress >= 1):
            self.console.print(f"{trainer.spec.name}  {100 * trainer.progress:.1f} %  {status}", soft_wrap=True)

    def status(self, trainer: Trainer) -> str:
        elapsed = max(time.perf_counter() - self.began, 1e-9)
        rate = (trainer.step - self.first_step) * trainer.settings.batch_size / elapsed
        done = trainer.progress - self.first_progress
        remaining = elapsed * (1 - trainer.progress) / max(done, 1e-9)
        return f"step {trainer.step}  loss {self.loss:.4f}  {rate:.0f} images/s  {clock(remaining)} left"


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
