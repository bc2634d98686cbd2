"""Drawn references in loops over samples: the naive sampler with terms whose label is another at every call."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from naive_sampler import NaiveSampler, in_window
from torch import Tensor

from segue.engine.rules.branch import Branch
from segue.engine.rules.drawn import ClassifierReference


def waving_classifier(classes: int = 6, seed: int = 3, waves: float = 3.0) -> Callable[[Tensor], Tensor]:
    """Logits [B, classes] that turn with the direction of the estimates; in the precision of these."""

    def classifier(clean: Tensor) -> Tensor:
        flat = clean.flatten(1)
        values = flat.shape[1]
        weight = torch.randn(values, classes, generator=torch.Generator().manual_seed(seed)) / values**0.5
        return 4 * (waves * (flat / flat.square().mean(1, keepdim=True).sqrt()) @ weight.to(clean)).sin()

    return classifier


def choice(logits: list[float], own: int, draw: ClassifierReference) -> tuple[int | None, float]:
    """The rival, or None for the plain reference, and the factor of the weight; of one sample."""
    exponentials = [math.exp((logit - max(logits)) / draw.temperature) for logit in logits]
    shares = [value / sum(exponentials) for value in exponentials]
    rival = max((k for k in range(len(shares)) if k != own), key=lambda k: shares[k])
    if draw.form == "rival":
        return rival, 1 - shares[own]
    if shares[rival] > shares[own]:
        return rival, 1 + draw.gain * (1 - shares[own])
    return None, 1.0


@dataclass
class NaiveDraws(NaiveSampler):
    """``drawn`` terms beside those of the rule; ``call_steps``: the step of every call; ``others``: labels of random draws.

    Of a term whose label a classifier chooses: of consecutive calls that follow, the estimate of every ``every``-th chooses
    (``lag=0``), or that of the call before it.
    """

    drawn: tuple = ()
    classifier: Callable[[Tensor], Tensor] | None = None
    call_steps: tuple[int, ...] = ()
    others: list[list[int]] = field(default_factory=list)  # [B][calls]

    def run(self, solver, noise, loop_noise=None):
        self.call, self.made, self.labels_used, self.largest = 0, {}, [], 0.0
        return super().run(solver, noise, loop_noise)

    def velocity(self, y, sigma, step):
        assert self.call_steps[self.call] == step
        velocity = super().velocity(y, sigma, step)
        conditional = self.output(Branch(), y, sigma)
        moved = conditional.clone()
        for term in self.drawn:
            draw = term.branch.condition
            if isinstance(draw, ClassifierReference):
                self.made[draw, self.call] = self.choices(draw, y, sigma)
            moved += self.moved(term, y, sigma, step, conditional)
        self.call += 1
        return velocity + self.as_velocity(moved, y, sigma) - self.as_velocity(conditional, y, sigma)

    def choices(self, draw, y, sigma) -> list:
        """What the estimates at this state choose, for every sample."""
        seen = {"cond": Branch(), "uncond": Branch("uncond"), "weak": Branch(model=draw.model)}[draw.source]
        clean = y - sigma * self.as_velocity(self.output(seen, y, sigma), y, sigma)
        return [choice(row, own, draw) for row, own in zip(self.classifier(clean).tolist(), self.labels.tolist(), strict=True)]

    def follows(self, term, call: int) -> bool:
        """Whether a call has a choice to follow."""
        draw, step = term.branch.condition, self.call_steps[call]
        inside = in_window(draw.interval, step, len(self.sigmas) - 1, self.sigmas[step])
        return bool(self.term_weight(term, step)) and inside and call >= draw.lag

    def moved(self, term, y, sigma, step, conditional) -> Tensor:
        """``w f (c - k)`` of one term, sample by sample."""
        draw, weight = term.branch.condition, self.term_weight(term, step)
        spec, labels, factors = self.models["main"].spec, self.labels.clone(), torch.ones(len(y), dtype=torch.float64)
        if not isinstance(draw, ClassifierReference):
            labels = torch.tensor([row[self.call] for row in self.others])
        elif self.follows(term, self.call):
            first = self.call
            while first > draw.lag and self.follows(term, first - 1):
                first -= 1
            asked = self.call - (self.call - first) % draw.every - draw.lag
            for i, (rival, factor) in enumerate(self.made[draw, asked]):
                plain = spec.null_label if draw.form == "cfg-swap" else int(labels[i])
                labels[i], factors[i] = plain if rival is None else rival, factor
        elif draw.form == "rival":
            return torch.zeros_like(y)
        elif draw.form == "cfg-swap":
            labels[:] = spec.null_label
        self.labels_used.append(labels.tolist())
        own, self.labels = self.labels, labels
        try:
            other = self.output(Branch("cond", model=term.branch.model), y, sigma)
        finally:
            self.labels = own
        difference = weight * factors[:, None, None, None] * (conditional - other)
        if term.channels is not None:
            difference[:, term.channels :] = 0
        self.largest = max(self.largest, float(difference.abs().max()))
        return difference
