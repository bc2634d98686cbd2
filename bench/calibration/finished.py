"""Finished samples of a rule and its approximations from the same noise, and how far they are from each other."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segue.engine.engine import Engine
from segue.engine.planning.plan import Plan
from segue.engine.rules.guidance import Guidance

from ..quality.draw import Draw
from ..scores.intervals import LEVEL, Interval, interval_by_sets


def run_of(plan: Plan) -> dict[str, Any]:
    """The schedule, the solver and the size of a plan: what another rule is planned and drawn by beside it."""
    return {"schedule": plan.schedule, "solver": plan.solver, "height": plan.height, "width": plan.width}


@dataclass(frozen=True)
class Finished:
    """Draws finished samples of rules on the run of ``exact``."""

    engine: Engine
    exact: Plan
    draw: Draw

    def samples(self, rule: Guidance | None) -> Tensor:
        """Latents [samples, C H W] fp64 on the host."""
        parts = []
        for labels, seeds in self.draw.parts(self.engine.spec.num_classes):
            run = self.engine.sample(labels, rule, seeds=seeds, **run_of(self.exact))
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
