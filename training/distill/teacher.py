"""The teacher of a distillation: a network that is frozen, sampled by a rule of the engine along one schedule."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.engine.adapters.kdiffusion import Denoiser
from segue.engine.planning.plan import Plan
from segue.engine.planning.schedule import Schedule

from .trajectories import Velocity, solver_rows

DenoiserOf = Callable[[Any, Sequence[int], Schedule], Denoiser]
"""``(rule, labels, schedule) -> denoiser``: that of an engine, for a batch of labels or of prompts by their number."""


class Teacher:
    """The guided velocity of a rule at the calls of a plan, and the numbers of its network's convention there.

    Raises ``ValueError`` for a plan that no student can follow: without guidance, with rules of samples, with a rule that
    remembers the calls before, with noise, or with several calls a step.
    """

    def __init__(self, plan: Plan, denoiser: DenoiserOf):
        _check_rule(plan)
        self.rows = solver_rows(plan.solver, plan.schedule.sigmas)
        self.plan, self._denoiser = plan, denoiser

    @property
    def calls(self) -> int:
        return len(self.rows)

    def start(self, noise: Tensor) -> Tensor:
        """The state at the first level for unit noise [B, C, H, W]."""
        return noise * self.plan.parameterization.prior_scale(float(self.plan.sigmas[0]))

    def velocity(self, labels: Sequence[int], scale: Tensor | None = None) -> Velocity:
        """The guided velocity for a batch; with ``scale`` [B] ``c + scale (g - c)`` of the guided ``g`` and unguided ``c``."""
        guided = self._of_rule(self.plan.guidance, labels)
        if scale is None:
            return guided
        plain, factor = self.unguided(labels), scale.view(-1, 1, 1, 1)

        def scaled(state: Tensor, call: int) -> Tensor:
            return torch.lerp(plain(state, call), guided(state, call), factor)

        return scaled

    def unguided(self, labels: Sequence[int]) -> Velocity:
        """The network's own velocity for the condition."""
        return self._of_rule(None, labels)

    def _of_rule(self, rule: Any, labels: Sequence[int]) -> Velocity:
        velocity, levels = self._denoiser(rule, labels, self.plan.schedule).velocity, self.plan.sigmas

        def at_call(state: Tensor, call: int) -> Tensor:
            return velocity(state, torch.full((len(state),), levels[call], dtype=torch.float64)).to(state.device)

        return at_call

    @cached_property
    def convention(self) -> np.ndarray:
        """``[N, 4]``, of every call: time input, input scale, and ``m, n`` of ``v = m y + n o`` for an output ``o``."""
        form, sigmas = self.plan.parameterization, self.plan.sigmas
        return np.stack([form.network_time(sigmas), form.input_scale(sigmas), *form.velocity(sigmas)], axis=1)


def _check_rule(plan: Plan) -> None:
    if plan.samples:
        raise ValueError("distillation takes one rule, got one with numbers for each sample")
    if not plan.evaluated.any() and not plan.corrections:
        raise ValueError(f"the rule {plan.guidance!r} does not guide on these {plan.calls} calls: there is nothing to distill")
    if plan.remembers:
        raise ValueError(
            f"distillation needs a velocity that state and level alone decide, and {plan.guidance!r} remembers earlier calls"
        )
