"""The published segmented guidance, written as a plain loop over diffusers' transformer, equals an attached pipeline.

The oracle follows methods.md, section 1: no tables, no rows, every branch evaluated in full, textbook solvers.
"""

import random
from dataclasses import dataclass

import pytest
import torch
from attached_runs import PATHS, draw_attached, relative_error
from counted_rows import planned_rows
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import CFG, SGG, Guidance, SkipLayer, Window
from tests.tolerances import ATTACHED_RUN


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

    def __init__(self, pipe, prompts, negatives):
        self.transformer = pipe.transformer
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


def scheduler(heun):
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

    return (FlowMatchHeunDiscreteScheduler if heun else FlowMatchEulerDiscreteScheduler)(shift=3.0)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(seed=11)


@pytest.fixture(scope="module")
def sampler(pipe):
    return PublishedSampler(pipe, ["leaf", "bee"], ["dull", ""])


def from_noise(sampler, noise, steps):
    """The pipeline call that starts from ``noise`` with the sampler's prompts."""
    return {
        "prompt": None,
        "prompt_embeds": sampler.positive,
        "negative_prompt_embeds": sampler.negative,
        "pooled_prompt_embeds": sampler.pooled,
        "negative_pooled_prompt_embeds": sampler.negative_pooled,
        "num_inference_steps": steps,
        "guidance_scale": 2.0,
        "latents": noise,
    }


def levels(pipe):
    """The scheduler's noise levels, each once."""
    return torch.unique_consecutive(pipe.scheduler.sigmas).tolist()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("heun", [False, True], ids=["euler", "heun"])
def test_random_recipes(pipe, sampler, seed, heun, path):
    pipe.scheduler = scheduler(heun)
    for draw in range(5):
        recipe = Recipe.random(seed + draw)
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed + draw))
        run = draw_attached(pipe, recipe.rule, path, **from_noise(sampler, noise, recipe.steps))
        wanted = sampler.run(recipe, noise, levels(pipe), heun)
        assert relative_error(run.latents, wanted) < ATTACHED_RUN, recipe
        assert run.rows == planned_rows(run.plan, 2), recipe


def test_published_recipe_in_steps_and_as_a_switch(pipe, sampler):
    """28 steps at shift 3: CFG 4.5 on 1-14, skip-layer 3.0 on 15-28; the same rule with a switch at sigma 0.74."""
    pipe.scheduler = scheduler(heun=False)
    recipe = Recipe(28, 4.5, 0.0, (1, 14), 3.0, 0.0, (15, 28), (2, 3))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = from_noise(sampler, noise, 28)
    run = draw_attached(pipe, recipe.rule, **call)
    assert relative_error(run.latents, sampler.run(recipe, noise, levels(pipe), False)) < ATTACHED_RUN
    assert sum(run.rows) == 2 * (14 * 2 * 6 + 14 * (6 + 2))
    assert run.plan.sigmas[13] > 0.74 > run.plan.sigmas[14]
    switched = draw_attached(pipe, SGG(CFG(4.5), SkipLayer(3.0, (2, 3)), switch=0.74), **call)
    assert torch.equal(switched.latents, run.latents)
