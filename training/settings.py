"""The settings of one training run."""

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from segue.engine.numeric_input import real_number, whole_number

from .objectives.label_dropout import LabelDropout
from .objectives.objective import Objective
from .streams import MAX_SEED
from .trained_parts import check_parts

DTYPES = ("bfloat16", "float32")
WHOLE = (
    "steps",
    "batch_size",
    "checkpoint_every",
    "snapshot_every",
    "warmup",
    "seed",
    "workers",
    "micro_batches",
    "preview_every",
)
REAL = ("learning_rate", "final_learning_rate", "weight_decay", "beta2", "ema", "clip", "exit_weight", "minutes")


@dataclass(frozen=True)
class TrainSettings:
    """Length, optimiser, objective and machine of one run, validated.

    The run ends after ``steps`` optimiser steps, or after ``minutes`` of training if that comes first (0: no time limit); the
    cosine of the learning rate is laid over whichever is nearer to its end.
    """

    steps: int = 10_000
    batch_size: int = 64  # samples of a step, of all processes together
    micro_batches: int = 1  # parts of a batch: processes share them, and a process adds their gradients up
    learning_rate: float = 1e-3
    warmup: int = 200
    final_learning_rate: float = 0.05  # fraction of learning_rate at the last step
    weight_decay: float = 0.0
    beta2: float = 0.99  # of AdamW; the first is 0.9
    ema: float = 0.999
    clip: float = 1.0
    dropout: LabelDropout = field(default_factory=LabelDropout)
    exit_weight: float = 0.2
    objective: Objective = field(default_factory=Objective)
    trained: str = "all"  # the parts of the network that are trained, see :mod:`.trained_parts`
    seed: int = 0
    minutes: float = 0.0
    checkpoint_every: int = 500
    snapshot_every: int = 0  # steps between copies of the averaged weights that stay; 0: none
    preview_every: int = 0  # steps between sheets of pictures drawn by the average; 0: none
    dtype: str = "bfloat16"
    device: str = "cpu"
    compile: bool = False
    graph: bool = True  # on a CUDA device: capture the step once and replay it
    workers: int = 0  # processes that draw leaves; 0 draws them between the steps

    def __post_init__(self):
        for name in WHOLE:
            self._set(name, whole_number(getattr(self, name), f"{name} must be a whole number"))
        for name in REAL:
            self._set(name, real_number(getattr(self, name), f"{name} must be a number"))
        for name in ("steps", "batch_size", "checkpoint_every", "micro_batches"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup", "workers", "snapshot_every", "preview_every", "weight_decay", "exit_weight", "minutes"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "finite and at least 0")
        for name in ("learning_rate", "clip"):
            self._require(name, 0 < getattr(self, name) < math.inf, "finite and positive")
        self._require("final_learning_rate", 0 <= self.final_learning_rate <= 1, "in [0, 1]")
        for name in ("ema", "beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        if self.batch_size % self.micro_batches:
            raise ValueError(f"batch_size must be a multiple of micro_batches ({self.micro_batches}), got {self.batch_size}")
        check_parts(self.trained)
        self._require("seed", 0 <= self.seed < MAX_SEED, "in [0, 2^31)")
        self._require("dtype", self.dtype in DTYPES, " or ".join(DTYPES))
        self._require("device", self.device.split(":")[0] in ("cpu", "cuda"), "cpu or cuda")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r}, but there is no CUDA device here")

        if self.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
            raise ValueError("compile needs a C++ compiler; set CXX, install one, or train without")

    @property
    def captured(self) -> bool:
        """Whether the step is a captured graph."""
        return self.graph and self.device.startswith("cuda")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainSettings":
        """The inverse of ``dataclasses.asdict``; raises ``ValueError`` for a setting that does not exist."""
        unknown = values.keys() - {setting.name for setting in fields(cls)}
        if unknown:
            raise ValueError(f"there is no training setting {sorted(unknown)[0]!r}")
        dropout, objective = LabelDropout(**values.get("dropout", {})), Objective.from_dict(values.get("objective", {}))
        return cls(**{**values, "dropout": dropout, "objective": objective})

    def _set(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)

    def _require(self, name: str, holds: bool, accepted: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {accepted}, got {getattr(self, name)!r}")
