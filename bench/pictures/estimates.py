"""What a run takes the sample for at every call: the estimates of x0, from the states that a callback sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from segue.engine.engine import Engine
from segue.engine.planning.plan import Plan
from segue.engine.rules.presets import ParsedRule


@dataclass(frozen=True, eq=False)
class Estimates:
    """Of one rule: its plan, and ``pictures`` [calls, B, C, H, W] as each call estimates them; the last are the samples."""

    rule: ParsedRule
    plan: Plan
    pictures: Tensor


def estimates(engine: Engine, rule: ParsedRule, labels: Sequence[int], seeds: Sequence[int], steps: int) -> Estimates:
    """Those of an Euler run.

    A step from ``sigma`` to ``sigma'`` goes along the guided velocity ``v = (x' - x) / (sigma' - sigma)``, and what is left of
    the way leads to ``x0 = x' - sigma' v``.
    """
    plan = engine.plan(rule.guidance, steps)
    states = [engine.draw_noise(plan, list(seeds))]

    def keep(info) -> None:
        states.append(info.x.clone())

    engine.sample(list(labels), rule.guidance, steps=steps, seeds=list(seeds), noise=states[0], callback=keep)
    levels, found = [*plan.sigmas.tolist(), plan.last_sigma], []
    for (before, after), (sigma, following) in zip(pairwise(states), pairwise(levels), strict=True):
        velocity = (after - before) / (following - sigma)
        found.append(after - following * velocity)
    return Estimates(rule, plan, torch.stack(found).cpu())


def branch_costs(plan: Plan, call: int) -> list[tuple[int, float]]:
    """The live branches of a call with what each adds to its FLOPs, relative to a forward pass of the network."""
    unit, live = plan.spec.forward_flops(plan.height, plan.width), plan.live[call]
    flops = [0, *(plan.call_cost(live[: count + 1])[2] for count in range(len(live)))]
    return [(branch, (after - before) / unit) for branch, before, after in zip(live, flops, flops[1:], strict=False)]
