"""The objectives sample by sample, as their formulas read: every weak output by a full forward of its own, no rows, no tables.

It shares with the training code the network's modules and the settings that state the question.
"""

import math
from dataclasses import dataclass

import torch
from naive_sampler import full_forward, variance_preserving_levels
from torch import Tensor

from segue.engine.rules.branch import Exit, Perturb
from segue.models.sit import SiT
from segue.training.objectives.objective import Objective


@dataclass
class NaiveObjective:
    """Loss of fp64 networks at given times (0 data, 1 noise; an index of DiT's chain), with gradients."""

    objective: Objective
    exit_weight: float
    model: SiT
    companion: SiT | None = None

    def loss(self, x0: Tensor, labels: Tensor, times: list[float], eps: Tensor, progress: float) -> Tensor:
        """The mean over all samples and elements."""
        total = sum(self.sample(x0[i], int(labels[i]), times[i], eps[i], progress) for i in range(len(x0)))
        return total / x0.numel()

    def point(self, x0: Tensor, eps: Tensor, time: float) -> tuple[Tensor, Tensor, float, float]:
        """State, target, the network's time and the flow noise level."""
        spec = self.model.spec
        if spec.time == "discrete":
            alpha, s = variance_preserving_levels()[int(time)]
            return alpha * x0 + s * eps, eps, float(time), s / (alpha + s)
        if spec.path == "cosine":
            angle = math.pi / 2 * time
            state = math.cos(angle) * x0 + math.sin(angle) * eps
            target = math.pi / 2 * (math.cos(angle) * eps - math.sin(angle) * x0)
            level = math.sin(angle) / (math.sin(angle) + math.cos(angle))
        else:
            state, target, level = (1 - time) * x0 + time * eps, eps - x0, time
        if spec.time == "data_time":
            return state, -target, 1 - time, level
        return state, target, time, level

    def output(self, model: SiT, state: Tensor, time: float, label: int, network: Perturb | Exit | None = None) -> Tensor:
        output = full_forward(model, state[None], time, torch.tensor([label]), network)[0]
        return output[: model.spec.channels]

    def sample(self, x0: Tensor, label: int, time: float, eps: Tensor, progress: float) -> Tensor:
        """The sum over the elements of one sample."""
        rule, spec = self.objective, self.model.spec
        state, target, told, level = self.point(x0, eps, time)
        strong = self.output(self.model, state, told, label)
        heads = {k: self.output(self.model, state, told, label, Exit(k)) for k in spec.exits}
        weight = rule.weight * progress**rule.power if level <= rule.high else 0.0
        below = rule.weak == "segmented" and level < rule.tau
        if rule.weak == "none":
            weak = strong
        elif rule.weak == "uncond" or (rule.weak == "segmented" and not below):
            weak = self.output(self.model, state, told, spec.null_label)
        elif rule.weak == "layer-skip":
            weak = self.output(self.model, state, told, label, Perturb("skip", rule.layers))
        elif rule.weak == "separate":
            weak = self.output(self.companion, state, told, label)
        else:
            weak = heads[rule.layer]
        weak = weak.detach()
        if rule.target == "inverse" and rule.weak in ("uncond", "segmented") and not below and label == spec.null_label:
            weight = 0.0  # v is v_weak: fitted plainly, as in training without guidance
        if rule.target == "inverse":
            scale = 1 / (1 - weight)
            loss = ((strong + (scale - 1) * weak) / scale - target).square().sum()
        else:
            loss = (strong - (target + weight * (strong.detach() - weak))).square().sum()
        for layer, head in heads.items():
            released = rule.mode == "released" and below and level <= rule.high and layer == rule.layer
            fitted = strong if released else target
            loss = loss + self.exit_weight * (head - fitted).square().sum()
        return loss
