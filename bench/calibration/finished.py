"""Finished samples of a rule and its approximations from the same noise, and how far they are from each other."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segue.engine.engine import Engine
from segue.engine.planning.plan import Plan
from segue.engine.rules.guidance import Guidance

from ..scores.intervals import LEVEL, Interval, interval_by_sets


@dataclass(frozen=True)
class Draw:
    """``samples`` of classes spread over all, from the seeds that begin at ``first_seed``, at most ``batch`` at once."""

    samples: int
    first_seed: int
    batch: int = 24

    def __post_init__(self):
        for name, least in (("samples", 5), ("batch", 1), ("first_seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.samples)

    def labels(self, classes: int) -> list[int]:
        """The class of every sample."""
        return [index * max(classes // self.samples, 1) % classes for index in range(self.samples)]

    def batches(self, classes: int) -> Iterator[tuple[list[int], list[int]]]:
        """Labels and seeds of batches that are of one size or differ by one."""
        labels, seeds = np.array(self.labels(classes)), np.array(self.seeds)
        for indices in np.array_split(np.arange(self.samples), -(-self.samples // self.batch)):
            yield labels[indices].tolist(), seeds[indices].tolist()


@dataclass(frozen=True)
class Finished:
    """Draws finished samples of rules that go by the schedule, the solver and the size of ``exact``."""

    engine: Engine
    exact: Plan
    draw: Draw

    def samples(self, rule: Guidance | None) -> Tensor:
        """Latents [samples, C H W] fp64 on the host."""
        plan, parts = self.exact, []
        options = {"schedule": plan.schedule, "solver": plan.solver, "height": plan.height, "width": plan.width}
        for labels, seeds in self.draw.batches(self.engine.spec.num_classes):
            run = self.engine.sample(labels, rule, seeds=seeds, **options)
            parts.append(run.latents.double().cpu().flatten(1))
        return torch.cat(parts)


def distances(samples: Tensor, exact: Tensor) -> Tensor:
    """``|x - exact| / |exact|`` of each sample [N, F], [N]."""
    return (samples - exact).norm(dim=1) / exact.norm(dim=1)


def error(moved: Tensor, unguided: Tensor) -> float:
    """The median distance of approximate samples from exact ones over that of unguided samples; both [N]."""
    return float(moved.median() / unguided.median())


def error_interval(moved: Tensor, unguided: Tensor, level: float = LEVEL) -> Interval:
    """:func:`error` with its interval by disjoint sets of the samples, never below zero."""
    found = interval_by_sets(lambda pairs: error(pairs[:, 0], pairs[:, 1]), torch.stack([moved, unguided], dim=1), level=level)
    return Interval(found.value, max(0.0, found.low), found.high)
