"""The published segmented guidance (arXiv 2603.20584) as a plain loop over diffusers' transformer.

No tables and no rows: every branch is evaluated in full, and solvers are written as in textbooks.
"""

import random
from dataclasses import dataclass

import torch
from tiny_sd3 import T5_TOKENS

from segue import CFG, Guidance, SkipLayer, Window


@dataclass(frozen=True)
class Recipe:
    """Scales and windows (1-based, inclusive steps; None: off) as on the published command line; d: linear schedules."""

    steps: int
    scale: float
    scale_delta: float
    cfg: tuple[int, int] | None
    weight: float
    weight_delta: float
    weak: tuple[int, int] | None
    layers: tuple[int, ...]

    @classmethod
    def random(cls, seed: int) -> "Recipe":
        choose = random.Random(seed)
        steps = choose.randint(1, 7)

        def window():
            return None if choose.random() < 0.15 else tuple(sorted((choose.randint(1, steps), choose.randint(1, steps))))

        return cls(
            steps,
            scale=choose.uniform(2.0, 6.0),
            scale_delta=choose.choice((0.0, choose.uniform(-0.9, 0.9))),
            cfg=window(),
            weight=choose.uniform(0.5, 3.0),
            weight_delta=choose.choice((0.0, choose.uniform(-0.4, 0.4))),
            weak=window(),
            layers=tuple(sorted(choose.sample(range(6), choose.randint(1, 3)))),
        )

    @property
    def rule(self) -> Guidance:
        rule = Guidance()
        if self.cfg:
            rule += CFG(self.scale, delta=self.scale_delta, window=Window.steps(*self.cfg))
        if self.weak:
            rule += SkipLayer(self.weight, self.layers, delta=self.weight_delta, window=Window.steps(*self.weak))
        return rule


def in_window(window, step):
    return window is not None and window[0] <= step <= window[1]


def linear(base, delta, window, step):
    """``base + d (1 - 2 p)`` with p from 0 to 1 across the window."""
    first, last = window
    position = (step - first) / (last - first) if last > first else 0.5
    return base + delta * (1 - 2 * position)


class PublishedSampler:
    """Draws by a recipe, evaluating both rows and a whole weak pass wherever the recipe mentions them."""

    def __init__(self, pipe, prompts, negatives, images=None):
        """``images``: negative and positive image tokens of an IP-Adapter, each [B, N, E]."""
        self.transformer, self.images = pipe.transformer, images
        embeds = pipe.encode_prompt(
            prompt=prompts, prompt_2=None, prompt_3=None, negative_prompt=negatives, max_sequence_length=T5_TOKENS
        )
        self.positive, self.negative, self.pooled, self.negative_pooled = embeds

    def output(self, x, sigma, negative=False, skip=None):
        return self.transformer(
            hidden_states=x,
            timestep=(torch.tensor(sigma) * 1000).expand(len(x)),
            encoder_hidden_states=self.negative if negative else self.positive,
            pooled_projections=self.negative_pooled if negative else self.pooled,
            skip_layers=skip,
            joint_attention_kwargs=None if self.images is None else {"ip_adapter_image_embeds": self.images[not negative]},
            return_dict=False,
        )[0]

    def velocity(self, recipe, x, sigma, step):
        c = self.output(x, sigma)
        v = c
        if in_window(recipe.cfg, step):
            u = self.output(x, sigma, negative=True)
            v = u + linear(recipe.scale, recipe.scale_delta, recipe.cfg, step) * (c - u)
        if in_window(recipe.weak, step):
            weak = self.output(x, sigma, skip=list(recipe.layers))
            v = v + linear(recipe.weight, recipe.weight_delta, recipe.weak, step) * (c - weak)
        return v

    @torch.no_grad()
    def run(self, recipe, noise, sigmas, heun):
        x = noise
        for step, (sigma, next_sigma) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True), start=1):
            v = self.velocity(recipe, x, sigma, step)
            ahead = x + (next_sigma - sigma) * v
            if heun and next_sigma > 0:  # both stages of a step follow one rule
                v = (v + self.velocity(recipe, ahead, next_sigma, step)) / 2
            x = x + (next_sigma - sigma) * v
        return x
