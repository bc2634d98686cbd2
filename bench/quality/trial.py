"""What is drawn for a score: how many samples of a model, from which seeds and by which steps."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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

_DRAWN = re.compile(r"(.+), (\d+) samples from seed (\d+), (\d+) steps, (\S+), beside (.+)")  # a case


@dataclass(frozen=True)
class Trial:
    """``samples`` of all classes in turn, from the seeds that begin at ``first_seed``, at most ``batch`` at once.

    Batches are of one size, or differ by one.  Seeds of a search and of its judgement must be apart.
    """

    samples: int
    steps: int = 28
    solver: str = "euler"
    first_seed: int = 0
    batch: int = 32

    def __post_init__(self):
        for name, least in (("samples", 2 * SETS), ("steps", 1), ("batch", 1), ("first_seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        get_solver(self.solver)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.samples)

    def labels(self, classes: int) -> list[int]:
        """The class of every sample: all in turn."""
        return [index % classes for index in range(self.samples)]

    def case(self, engine: Engine, real: str) -> str:
        """What rows must share to be compared: the networks, how their samples are drawn, what they are compared with."""
        drawn = f"{self.samples} samples from seed {self.first_seed}, {self.steps} steps, {self.solver}"
        return f"{networks_of(engine)}, {drawn}, beside {real}"

    def plan(self, engine: Engine, rule: ParsedRule) -> Plan:
        return engine.plan(rule.guidance, self.steps, solver=self.solver)

    @property
    def batches(self) -> int:
        return -(-self.samples // self.batch)

    def draw(
        self, engine: Engine, rule: ParsedRule, advance: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of pictures [B, C, H, W] in [-1, 1] with labels [B]; sample ``i`` is of class ``i`` modulo their number.

        ``advance`` is called after every call of the network, :attr:`batches` times as often as a run has calls.
        """
        every = np.array(self.labels(engine.spec.num_classes))
        for indices in np.array_split(np.arange(self.samples), self.batches):
            labels = every[indices].tolist()
            seeds = (self.first_seed + indices).tolist()
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
    return Case(networks, Trial(int(samples), int(steps), solver, int(seed)), real)


def pictures_of(run: SampleRun) -> Tensor:
    """The pictures [B, C, H, W] fp32 in [-1, 1] of a run, on the host: its latents where these are pixels."""
    if run.decoder is None:
        return run.latents.clamp(-1, 1).cpu()
    return to_unit(np.stack([np.asarray(image) for image in run.images]))


def to_unit(pixels: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] fp32 in [-1, 1]."""
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
