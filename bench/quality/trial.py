"""What is drawn for a score: how many samples of a model, from which seeds and by which steps."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from segue.engine.engine import Engine, SampleRun
from segue.engine.planning.plan import Plan
from segue.engine.planning.solvers import get_solver
from segue.engine.rules.presets import ParsedRule
from segue.engine.running.progress import Counting
from segue.models.fingerprint import fingerprint

from ..scores.intervals import SETS
from .draw import Draw

_DRAWN = re.compile(r"(.+), (\d+) samples from seed (\d+), (\d+) steps, (\S+), beside (.+)")  # a case


@dataclass(frozen=True)
class Trial(Draw):
    """Samples of all classes in turn, by so many ``steps`` of a ``solver``."""

    least: ClassVar[int] = 2 * SETS

    steps: int = 28
    solver: str = "euler"

    def __post_init__(self):
        super().__post_init__()
        self.check(steps=1)
        get_solver(self.solver)

    def labels(self, classes: int) -> list[int]:
        """The class of every sample: all in turn."""
        return [index % classes for index in range(self.samples)]

    def case(self, engine: Engine, real: str) -> str:
        """What rows must share to be compared: the networks, how their samples are drawn, what they are compared with."""
        drawn = f"{self.samples} samples from seed {self.first_seed}, {self.steps} steps, {self.solver}"
        return f"{networks_of(engine)}, {drawn}, beside {real}"

    def plan(self, engine: Engine, rule: ParsedRule) -> Plan:
        return engine.plan(rule.guidance, self.steps, solver=self.solver)

    def draw(
        self, engine: Engine, rule: ParsedRule, advance: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of pictures [B, C, H, W] in [-1, 1] with labels [B]; sample ``i`` is of class ``i`` modulo their number.

        ``advance`` is called after every call of the network, :attr:`batches` times as often as a run has calls.
        """
        for labels, seeds in self.parts(engine.spec.num_classes):
            options = {"steps": self.steps, "solver": self.solver, "callback": Counting(None, advance)}
            run = engine.sample(labels, rule.guidance, seeds=seeds, **options)
            yield pictures_of(run), torch.tensor(labels)


def networks_of(engine: Engine) -> str:
    """What every case of an engine's networks begins with: their name and a fingerprint of their weights as they run."""
    return f"{engine.spec.name} {fingerprint(engine.models)}"


@dataclass(frozen=True)
class Case:
    """What the case of a row says: of which networks (:func:`networks_of`), how they drew, beside which real samples."""

    networks: str
    trial: Trial
    real: str


def parse_case(case: str) -> Case | None:
    """What :meth:`Trial.case` wrote; None for a case of pictures that were there."""
    found = _DRAWN.fullmatch(case)
    if found is None:
        return None
    networks, samples, seed, steps, solver, real = found.groups()
    return Case(networks, Trial(int(samples), int(seed), steps=int(steps), solver=solver), real)


def pictures_of(run: SampleRun) -> Tensor:
    """The pictures [B, C, H, W] fp32 in [-1, 1] of a run, on the host: its latents where these are pixels."""
    if run.decoder is None:
        return run.latents.clamp(-1, 1).cpu()
    return to_unit(np.stack([np.asarray(image) for image in run.images]))


def to_unit(pixels: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] fp32 in [-1, 1]."""
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
