"""Effective guidance scale: which scale of CFG would move the prediction as far along ``c - u`` as a rule does.

``1 + <g - c, D> / <D, D>`` with ``D = c - u``: comparisons at equal effective scale are fair ones.  Source: GA-Eval
(arXiv 2602.22570).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segue.engine.core import ScheduleLike
from segue.engine.engine import Engine
from segue.engine.planning.plan import Plan
from segue.engine.rules.guidance import Guidance
from segue.engine.rules.linear_rules import CFG
from segue.engine.running.sampler import CallInfo


def effective_scale(guided: Tensor, conditional: Tensor, unconditional: Tensor) -> Tensor:
    """Of predictions g, c, u [B, ...] at one state, [B] fp64; NaN where c equals u, for no scale is any there.

    Velocities, noises and clean estimates give the same: each is affine in the other.
    """
    if not guided.shape == conditional.shape == unconditional.shape:
        shapes = [tuple(value.shape) for value in (guided, conditional, unconditional)]
        raise ValueError(f"the three predictions must have one shape, got {shapes}")
    g, c, u = (value.detach().double().flatten(1) for value in (guided, conditional, unconditional))
    direction = c - u
    return 1 + ((g - c) * direction).sum(dim=1) / direction.square().sum(dim=1)


def effective_scales(
    engine: Engine,
    guidance: Guidance,
    labels: Sequence[int],
    *,
    steps: int,
    seeds: Sequence[int],
    schedule: ScheduleLike | None = None,
    beside: Engine | None = None,
) -> tuple[Plan, Tensor]:
    """A rule's effective scale at every call, [calls, B] fp64, along the trajectories that it takes itself by Euler's method.

    ``beside`` is the engine whose condition and whose absence of it count, where the rule runs on another network: one with
    guidance in its weights.
    Costs the run, and at each of its states the rule, the condition and its absence once more.
    """
    plan = engine.plan(guidance, steps, schedule)
    noise = engine.draw_noise(plan, seeds)
    states = [noise * plan.parameterization.prior_scale(float(plan.sigmas[0]))]

    def keep(info: CallInfo) -> None:
        states.append(info.x.clone())

    engine.sample(labels, guidance, steps=steps, seeds=seeds, noise=noise, schedule=plan.schedule, callback=keep)
    rules = (guidance, None, CFG(0.0))  # the rule, the condition, its absence
    engines = (engine, beside or engine, beside or engine)
    velocities = [
        each.denoiser(rule, labels, schedule=plan.schedule).velocity for each, rule in zip(engines, rules, strict=True)
    ]
    scales = []
    for sigma, x in zip(plan.sigmas, states, strict=False):  # the last state is the sample
        level = torch.full((len(labels),), float(sigma), dtype=torch.float64)
        scales.append(effective_scale(*(velocity(x, level) for velocity in velocities)))
    return plan, torch.stack(scales)
