"""Requests made by hand, and what each draws when it has the engine for itself."""

import torch

from segue import Engine
from segue.engine.core import EngineCore
from segue.engine.planning.plan import Plan
from segue.engine.scheduling.drawing import Drawing, Start
from segue.models.mmdit import TextCondition


def drawing_of(engine: EngineCore, plan: Plan, seed: int) -> Drawing:
    """A request for a planned run; prompts are random numbers."""
    noise = engine.draw_noise(plan, [seed])
    state = noise * plan.parameterization.prior_scale(float(plan.sigmas[0]))
    if isinstance(engine, Engine):
        conditions = engine._conditions(plan, [seed % engine.spec.num_classes])
    else:
        generator = torch.Generator().manual_seed(seed)
        spec = plan.spec
        conditions = {
            condition: TextCondition(
                torch.randn(1, spec.text_tokens, spec.text_dim, generator=generator),
                torch.randn(1, spec.pooled_dim, generator=generator),
            )
            for condition in plan.conditions
        }
    return Drawing(plan, seed, lambda: Start(conditions, state), lambda latents: latents, lambda latents: latents)


def alone(engine: EngineCore, drawing: Drawing) -> torch.Tensor:
    """The latents of a request that has the engine for itself."""
    latents, _ = engine.run(drawing.plan, drawing.start.conditions, [drawing.seed], drawing.start.state)
    return latents
