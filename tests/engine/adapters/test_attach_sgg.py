"""The published segmented guidance, written as a plain loop over diffusers' transformer, equals an attached pipeline."""

import pytest
import torch
from attached_runs import PATHS, draw_attached, relative_error
from counted_rows import planned_rows
from published_sgg import PublishedSampler, Recipe
from sweeps import first_fast
from tiny_sd3 import tiny_pipeline

from segue import CFG, SGG, SkipLayer
from tests.tolerances import ATTACHED_RUN


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
@pytest.mark.parametrize("heun", first_fast([True, False]), ids=["heun", "euler"])
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
    """28 steps at shift 3: CFG 4.5 on 1-14, skip-layer 3.0 on 15-28; the same rule with a switch at sigma 0.75."""
    pipe.scheduler = scheduler(heun=False)
    recipe = Recipe(28, 4.5, 0.0, (1, 14), 3.0, 0.0, (15, 28), (2, 3))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = from_noise(sampler, noise, 28)
    run = draw_attached(pipe, recipe.rule, **call)
    assert relative_error(run.latents, sampler.run(recipe, noise, levels(pipe), False)) < ATTACHED_RUN
    assert sum(run.rows) == 2 * (14 * 2 * 6 + 14 * (6 + 2))
    assert run.plan.sigmas[13] > 0.75 > run.plan.sigmas[14]
    switched = draw_attached(pipe, SGG(CFG(4.5), SkipLayer(3.0, (2, 3)), switch=0.75), **call)
    assert torch.equal(switched.latents, run.latents)
