"""The training loop: AdamW, EMA, resume, checkpoints, progress and a log."""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segue.models.checkpoint_files import RUN_FILE
from segue.models.sit import SiT
from segue.models.spec import SiTSpec
from segue.models.weights import save_model

from .herbarium import Herbarium
from .objective import LabelDropout, logit_normal_time, plain_loss


@dataclass(frozen=True)
class TrainSettings:
    """One training run; every field is a command-line option."""

    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    final_learning_rate: float = 0.05  # fraction of learning_rate at the last step (cosine)
    weight_decay: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    dropout: LabelDropout = field(default_factory=LabelDropout)
    exit_weight: float = 0.2
    seed: int = 0
    minutes: float = 0.0  # stop early after this much training time, with the schedule laid over it; 0: no limit
    checkpoint_every: int = 500
    dtype: str = "bfloat16"
    device: str = "cpu"
    compile: bool = False

    def __post_init__(self):
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype must be bfloat16 or float32, got {self.dtype!r}")


class Trainer:
    """Trains one network; ``folder`` holds model.safetensors (EMA), state.pt (resume), spec.json and log.jsonl."""

    def __init__(self, spec: SiTSpec, settings: TrainSettings, folder: Path):
        self.spec, self.settings, self.folder = spec, settings, Path(folder)
        torch.manual_seed(settings.seed)
        self.model = SiT(spec).initialize().to(settings.device)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
        )
        if settings.compile:
            self.model.compile()
        self.data = Herbarium(settings.batch_size, settings.seed)
        self.step = 0
        self.seconds = 0.0

    # --- checkpoints ---------------------------------------------------------------------------------------------------

    def resume(self) -> bool:
        """Continue from ``folder`` if it holds a state; returns whether it did."""
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def save(self) -> None:
        """Write the EMA weights and the resume state; each file is replaced whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_model(self.ema.module, self.folder / RUN_FILE)
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.folder / "state.pt.part")
        os.replace(self.folder / "state.pt.part", self.folder / "state.pt")
        record = {"spec": self.spec.to_dict(), "settings": asdict(self.settings), "step": self.step, "seconds": self.seconds}
        (self.folder / "run.json").write_text(json.dumps(record, indent=1) + "\n")

    # --- the loop ------------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Fraction of the run done, by steps or by time, whichever is further."""
        limit = self.settings.minutes * 60
        return min(1.0, max(self.step / self.settings.steps, self.seconds / limit if limit else 0.0))

    def learning_rate(self) -> float:
        s = self.settings
        warm = min(1.0, (self.step + 1) / max(1, s.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return s.learning_rate * warm * (s.final_learning_rate + (1 - s.final_learning_rate) * cosine)

    def train_step(self) -> dict[str, float]:
        """One optimiser step on one new batch; returns the losses."""
        s = self.settings
        x0, labels = self.data.batch(self.step)
        generator = torch.Generator().manual_seed((s.seed << 32) + (1 << 31) + self.step)
        labels = s.dropout(labels, self.spec, generator)
        sigma = logit_normal_time(x0.shape[0], generator)
        eps = torch.randn(x0.shape, generator=generator)
        x0, labels, sigma, eps = (tensor.to(s.device) for tensor in (x0, labels, sigma, eps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with torch.autocast(torch.device(s.device).type, torch.bfloat16, enabled=s.dtype == "bfloat16"):
            losses = plain_loss(self.model, x0, labels, sigma, eps, s.exit_weight)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {self.step}; the last checkpoint is in {self.folder}")
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        self.step += 1
        return {name: value.item() for name, value in losses.items()} | {"gradient": norm.item()}

    def run(self, report=lambda trainer, losses: None) -> None:
        """Train to the end, calling ``report(trainer, mean losses)`` about every 50 steps."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sums: dict[str, float] = {}
        count = 0
        try:
            while self.progress < 1:
                began = time.perf_counter()
                losses = self.train_step()
                self.seconds += time.perf_counter() - began
                count += 1
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
                if self.step % 50 == 0 or self.progress >= 1:
                    means = {name: value / count for name, value in sums.items()}
                    self._log(means)
                    report(self, means)
                    sums, count = {}, 0
                if self.step % self.settings.checkpoint_every == 0:
                    self.save()
        finally:
            if self.step:
                self.save()

    def _log(self, losses: dict[str, float]) -> None:
        rate = self.step * self.settings.batch_size / max(self.seconds, 1e-9)
        row = {"step": self.step, "seconds": round(self.seconds, 1), "images_per_s": round(rate, 2), "lr": self.learning_rate()}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(row | {name: round(value, 5) for name, value in losses.items()}) + "\n")


STRONG = SiTSpec(
    name="herbarium",
    channels=3,
    height=32,
    width=32,
    patch=4,
    dim=160,
    depth=12,
    heads=5,
    prediction="velocity",
    time="sigma",
    exits=(4,),
    num_classes=24,
    parents=tuple(c // 4 for c in range(24)),
)
WEAK = replace(STRONG, name="herbarium-weak", dim=96, depth=6, heads=3, exits=())
