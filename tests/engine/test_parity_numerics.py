"""``numerics="diffusers"``: combination, scheduler, noise and dtypes bit for bit the pipeline's."""

import pytest
import torch
from tiny_sd3 import tiny_pipeline

from segue import CFG, Engine, SkipLayer, Window
from segue.engine.parity import combine_as_diffusers
from segue.engine.program import Program

RULE = CFG(4.5, window=Window.steps(1, 3)) + SkipLayer(3.0, (1, 3), window=Window.steps(3, 5))


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def engine(request):
    return Engine.from_pipe(tiny_pipeline("sd3.5-medium").to(request.param))


@pytest.mark.parametrize("call", range(5))
def test_the_combination_is_the_pipelines_bit_for_bit(engine, call):
    plan = engine.plan(RULE, steps=5)
    generator = torch.Generator().manual_seed(call)
    c, u, k = (torch.randn(2, 4, 8, 8, generator=generator).to(engine.dtype) for _ in range(3))
    published = c
    if call < 3:
        published = u + 4.5 * (c - u)
    if call >= 2:
        published = published + (c - k) * 3.0
    outputs = {i: (c, u, k)[i] for i in plan.live[call]}
    assert torch.equal(combine_as_diffusers(plan, call, outputs), published)


@pytest.mark.parametrize("rule", [None, CFG(4.5)], ids=["unguided", "cfg"])
def test_a_run_on_the_pipelines_own_network_is_the_pipelines_bit_for_bit(engine, rule, monkeypatch):
    """With diffusers' transformer in the place of ours, what is left are noise, combination, scheduler and dtypes."""
    pipe, prompts, seeds = engine.pipe, ["a leaf", "a twig"], [3, 4]
    scale = 4.5 if rule else 1.0
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": 5, "guidance_scale": scale, "output_type": "latent"}
    expected = pipe(prompts, negative_prompt="x", generator=generators, **options).images
    embeddings = engine.encode(prompts, "x")
    halves = [embeddings.negative, embeddings.positive] if rule else [embeddings.positive]

    def branch_outputs(program, live):
        time = program.plan.parameterization.network_time(program.plan.sigmas)[int(program.call[0])]
        out = pipe.transformer(
            hidden_states=torch.cat([program.x.to(engine.dtype)] * len(halves)),
            timestep=torch.tensor(time, dtype=torch.float32).expand(2 * len(halves)),
            encoder_hidden_states=torch.cat([half.context for half in halves]),
            pooled_projections=torch.cat([half.pooled for half in halves]),
            return_dict=False,
        )[0].chunk(len(halves))
        return [out[-1], out[0]][: len(live)]

    monkeypatch.setattr(Program, "branch_outputs", branch_outputs)
    run = engine.sample(embeddings, rule, steps=5, seeds=seeds, numerics="diffusers")
    assert run.latents.dtype == engine.dtype
    assert torch.equal(run.latents, expected)


def test_both_numerics_draw_the_same_picture(engine):
    """They differ by roundings only: a few of the model's dtype per call, amplified by a guided network."""
    runs = [engine.generate("a leaf", "x", RULE, steps=5, seeds=[3], numerics=name).latents for name in ("diffusers", "segue")]
    bound = 20 * torch.finfo(engine.dtype).eps
    assert (runs[0] - runs[1]).float().square().mean().sqrt() <= bound * runs[1].square().mean().sqrt()


def test_it_takes_the_scheduler_as_it_is(engine):
    with pytest.raises(ValueError, match="takes no schedule or solver"):
        engine.generate("a leaf", numerics="diffusers", schedule="linear", solver="euler")
    with pytest.raises(ValueError, match="unknown numerics 'exact'"):
        engine.generate("a leaf", numerics="exact")
