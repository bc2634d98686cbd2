"""``numerics="diffusers"``: given the same network outputs, a run is bit for bit diffusers'; the network is ours."""

import re
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from counted_rows import counted_rows, planned_rows
from nag_processor import nag_processors
from published_sgg import PublishedSampler, Recipe
from tiny_sd3 import T5_TOKENS, tiny_pipeline
from upstream_network import use_upstream_network

from segue import CFG, NAG, S2, Engine, Guidance, Rescale, SkipLayer, Window
from segue.engine.prompts.parity import combine_as_diffusers
from segue.engine.prompts.planning import DEFAULT_STEPS
from segue.engine.rules.calibration import Calibration
from segue.engine.rules.dropped_blocks import DropBlocks
from segue.engine.rules.reuse import Reuse
from segue.engine.rules.rule_text import rule_text
from segue.engine.running.program import Program
from segue.kernels.record import Kernels
from segue.models.fingerprint import rounded_fingerprint
from segue.models.mmdit_rows import MMDiTRows

STEPS, PROMPTS, SEEDS = 5, ["a leaf", "a twig"], [3, 4]
RULE = CFG(4.5, window=Window.steps(1, 3)) + SkipLayer(3.0, (1, 3), window=Window.steps(3, 5))
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "static": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "dynamic": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "base_image_seq_len": 4}),
    "karras": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "rounded times": ("UniPCMultistepScheduler", FLOW),
}
SLG = {"skip_guidance_layers": [1, 3], "skip_layer_guidance_scale": 2.8, "skip_layer_guidance_stop": 0.7}
# the pipeline's options and the rule that says the same
RULES = {
    "unguided": ({"guidance_scale": 1.0}, None),
    "cfg": ({"guidance_scale": 4.3}, CFG(4.3)),
    "slg": ({"guidance_scale": 4.5, **SLG}, CFG(4.5) + SkipLayer(2.8, (1, 3), window=Window.steps(2, 4))),  # 0.05 < i < 3.5
}


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def engine(request):
    return Engine.from_pipe(tiny_pipeline("sd3.5-medium").to(request.param))


def use_scheduler(engine, monkeypatch, name: str):
    import diffusers

    kind, settings = SCHEDULERS[name]
    monkeypatch.setattr(engine.pipe, "scheduler", getattr(diffusers, kind)(**settings))


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def from_pipeline(pipe, options, **more):
    call = {"negative_prompt": "x", "num_inference_steps": STEPS, "max_sequence_length": T5_TOKENS, "output_type": "latent"}
    return pipe(PROMPTS, generator=generators(SEEDS), **call, **options, **more).images


def from_engine(engine, rule, **more):
    embeddings = engine.encode(PROMPTS, "x", max_sequence_length=T5_TOKENS)
    return engine.sample(embeddings, rule, steps=STEPS, seeds=SEEDS, numerics="diffusers", **more)


@pytest.mark.parametrize("call", range(5))
def test_the_combination_is_the_pipelines_bit_for_bit(engine, call):
    plan = engine.plan(RULE, steps=STEPS)
    generator = torch.Generator().manual_seed(call)
    c, u, k = (torch.randn(2, 4, 8, 8, generator=generator).to(engine.dtype) for _ in range(3))
    published = c
    if call < 3:
        published = u + 4.5 * (c - u)
    if call >= 2:
        published = published + (c - k) * 3.0
    outputs = {i: (c, u, k)[i] for i in plan.live[call]}
    assert torch.equal(combine_as_diffusers(plan, call, outputs), published)


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [*(("static", name) for name in RULES), ("dynamic", "slg"), *((kind, "cfg") for kind in SCHEDULERS if kind != "static")],
)
def test_given_the_network_a_run_is_the_pipelines_bit_for_bit(engine, scheduler, name, monkeypatch):
    use_scheduler(engine, monkeypatch, scheduler)
    options, rule = RULES[name]
    expected = from_pipeline(engine.pipe, options)
    use_upstream_network(engine, monkeypatch)
    run = from_engine(engine, rule)
    assert run.latents.dtype == engine.dtype
    assert torch.equal(run.latents, expected)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("scheduler", ["static", "dynamic", "heun"])
def test_given_the_network_image_to_image_is_the_pipelines_bit_for_bit(engine, scheduler, strength, monkeypatch):
    from diffusers import StableDiffusion3Img2ImgPipeline

    use_scheduler(engine, monkeypatch, scheduler)
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)).to(engine.dtype)
    pipe = StableDiffusion3Img2ImgPipeline(**engine.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    # a tensor with the latents' channels is taken as latents; the default size would shift as for the largest picture
    expected = from_pipeline(pipe, {"guidance_scale": 4.5}, image=clean, strength=strength, height=16, width=16)
    use_upstream_network(engine, monkeypatch)
    run = from_engine(engine, CFG(4.5), latents=clean, strength=strength)
    assert torch.equal(run.latents, expected)


@torch.no_grad()
def from_loop(engine, steps, velocity):
    """A loop over the pipeline's scheduler; ``velocity`` of latents, their level and the step, counted from 1."""
    own = engine.pipe.scheduler
    own.set_timesteps(steps)
    latents = torch.stack([torch.randn(4, 8, 8, generator=g, dtype=engine.dtype) for g in generators(SEEDS)])
    for call, (level, time) in enumerate(zip(own.sigmas.tolist(), own.timesteps, strict=False)):
        latents = own.step(velocity(latents, level, call // own.order + 1), time, latents, return_dict=False)[0]
    return latents


RECIPES = [Recipe(STEPS, 4.5, 0.0, (1, 3), 3.0, 0.0, (4, 5), (2, 3)), *(Recipe.random(seed) for seed in range(4))]


@pytest.mark.parametrize("recipe", RECIPES, ids=["published", *map(str, range(4))])
@pytest.mark.parametrize("scheduler", ["static", "heun"])
def test_given_the_network_a_run_is_the_published_loop_bit_for_bit(engine, scheduler, recipe, monkeypatch):
    """The published algorithm with diffusers' scheduler stepping; both stages of a Heun step follow one rule."""
    use_scheduler(engine, monkeypatch, scheduler)
    published = PublishedSampler(engine.pipe, PROMPTS, ["x", "x"])
    expected = from_loop(engine, recipe.steps, partial(published.velocity, recipe))
    use_upstream_network(engine, monkeypatch, separately=True)
    embeddings = engine.encode(PROMPTS, "x", max_sequence_length=T5_TOKENS)
    run = engine.sample(embeddings, recipe.rule, steps=recipe.steps, seeds=SEEDS, numerics="diffusers")
    assert torch.equal(run.latents, expected)


DROPPED, NORMALIZED = DropBlocks(0.3, seed=2), (5.0, 2.5, 0.25)
INSIDE = {  # rules that change the network inside
    "s2": CFG(3.0) + S2(0.5, share=DROPPED.share, seed=DROPPED.seed),
    "nag": NAG(5.0, alpha=0.25) + CFG(3.0, window=Window.steps(1, 3)) + SkipLayer(0.5, (1, 3), window=Window.steps(3, 5)),
}


class InsideSampler(PublishedSampler):
    """The rules of INSIDE over diffusers' transformer: blocks left out, or the published attention processor."""

    def normalized(self, x, level, skip=None):
        with nag_processors(self.transformer, *NORMALIZED):
            out = self.transformer(
                hidden_states=torch.cat([x] * 2),
                timestep=(torch.tensor(level) * 1000).expand(2 * len(x)),
                encoder_hidden_states=torch.cat([self.positive, self.negative]),
                pooled_projections=torch.cat([self.pooled, self.negative_pooled]),
                skip_layers=skip,
                return_dict=False,
            )[0]
        return out[: len(x)]

    def s2(self, x, level, step):
        c, u = self.output(x, level), self.output(x, level, negative=True)
        dropped = DROPPED.dropped(self.transformer.config.num_layers, STEPS)[step - 1]
        return u + 3.0 * (c - u) + (c - self.output(x, level, skip=list(dropped))) * 0.5

    def nag(self, x, level, step):
        c = v = self.normalized(x, level)
        if step <= 3:
            u = self.output(x, level, negative=True)
            v = u + 3.0 * (c - u)
        return v + (c - self.normalized(x, level, [1, 3])) * 0.5 if step >= 3 else v


@pytest.mark.parametrize(("name", "scheduler"), [("s2", "heun"), ("nag", "static")])
def test_rules_inside_the_network_are_its_own(engine, scheduler, name, monkeypatch):
    """Given the network a loop over diffusers' bit for bit, else its rows by roundings; and only live ones run."""
    use_scheduler(engine, monkeypatch, scheduler)
    published = InsideSampler(engine.pipe, PROMPTS, ["x", "x"])
    expected = from_loop(engine, STEPS, getattr(published, name))
    with counted_rows() as rows:
        run = from_engine(engine, INSIDE[name])
    assert sum(rows) == len(SEEDS) * (run.plan.cost.blocks + run.plan.cost.text_blocks)
    difference, size = (run.latents.float() - expected.float()).square().mean().sqrt(), expected.float().square().mean().sqrt()
    assert difference <= 20 * torch.finfo(engine.dtype).eps * size
    use_upstream_network(engine, monkeypatch, separately=True)
    assert torch.equal(from_engine(engine, INSIDE[name]).latents, expected)
    without = Guidance(tuple(term for term in INSIDE[name].terms if not isinstance(term.branch.network, DropBlocks)))
    assert not torch.equal(from_engine(engine, without).latents, expected)


@pytest.mark.parametrize("scheduler", ["static", "heun", "rounded times"])
def test_the_network_is_called_at_the_schedulers_own_times(engine, scheduler, monkeypatch):
    """The same fp32 bits that the pipeline's transformer gets, call by call."""
    use_scheduler(engine, monkeypatch, scheduler)
    upstream, ours = [], []
    handle = engine.pipe.transformer.register_forward_pre_hook(
        lambda module, args, given: upstream.append(given["timestep"][0].float()), with_kwargs=True
    )
    from_pipeline(engine.pipe, {"guidance_scale": 1.0})
    handle.remove()
    load, forward = MMDiTRows.load, MMDiTRows.forward

    def noted_load(rows, times, conditions):
        rows.given = times.float()
        load(rows, times, conditions)

    def noted_forward(rows, x, clock, *rest):
        ours.append(rows.given[clock.times[clock.call[0]]])
        return forward(rows, x, clock, *rest)

    monkeypatch.setattr(MMDiTRows, "load", noted_load)
    monkeypatch.setattr(MMDiTRows, "forward", noted_forward)
    from_engine(engine, None)
    assert torch.equal(torch.stack(ours), torch.stack(upstream))


@pytest.mark.parametrize("name", RULES)
def test_our_network_differs_from_the_pipelines_by_roundings(engine, name):
    """A few roundings of the model's dtype per block and call, amplified by guidance; and only live rows run."""
    options, rule = RULES[name]
    expected = from_pipeline(engine.pipe, options).float()
    with counted_rows() as rows:
        run = from_engine(engine, rule)
    assert rows == planned_rows(run.plan, len(SEEDS))
    difference = (run.latents.float() - expected).square().mean().sqrt()
    assert difference <= 20 * torch.finfo(engine.dtype).eps * expected.square().mean().sqrt()


def test_outputs_of_our_network_are_rounded_before_they_are_combined(engine, monkeypatch):
    """What the scheduler gets is the combination, in the model's dtype, of outputs in the model's dtype."""
    outputs, given = [], []
    branch_outputs, step = Program.branch_outputs, type(engine.pipe.scheduler).step

    def noted_outputs(program, live):
        outputs.append(dict(zip(live, branch_outputs(program, live), strict=True)))
        return list(outputs[-1].values())

    def noted_step(scheduler, output, *args, **kwargs):
        given.append(output)
        return step(scheduler, output, *args, **kwargs)

    monkeypatch.setattr(Program, "branch_outputs", noted_outputs)
    monkeypatch.setattr(type(engine.pipe.scheduler), "step", noted_step)
    plan = from_engine(engine, RULE).plan
    assert len(given) == plan.calls
    for call, guided in enumerate(given):
        rounded = {i: output.to(engine.dtype) for i, output in outputs[call].items()}
        assert guided.dtype == engine.dtype
        assert torch.equal(guided, combine_as_diffusers(plan, call, rounded))


def test_both_numerics_draw_the_same_picture(engine):
    """They differ by roundings only: a few of the model's dtype per call, amplified by a guided network."""
    runs = [engine.generate("a leaf", "x", RULE, steps=5, seeds=[3], numerics=name).latents for name in ("diffusers", "segue")]
    bound = 20 * torch.finfo(engine.dtype).eps
    assert (runs[0] - runs[1]).float().square().mean().sqrt() <= bound * runs[1].square().mean().sqrt()


def test_it_runs_on_the_reference_functions_whatever_the_engine_has(engine, monkeypatch):
    expected = from_engine(engine, RULE).latents

    def unused(*_):
        raise AssertionError("a kernel of the engine ran")

    names = ("modulated_norm", "modulated_norm2", "residual_modulated_norm", "attention", "grouped_linear", "project")
    kernels = replace(Kernels(), **dict.fromkeys(names, unused))
    monkeypatch.setattr(engine, "selection", replace(engine.selection, kernels=kernels))
    monkeypatch.setattr(engine, "_programs", {})
    assert torch.equal(from_engine(engine, RULE).latents, expected)
    with pytest.raises(AssertionError, match="a kernel of the engine ran"):
        engine.generate("a leaf", "x", RULE, steps=2, seeds=[3])


def test_the_progress_bar_counts_calls_beside_a_callback(engine, monkeypatch):
    counted, seen = [], []

    @contextmanager
    def bar(title, total, shown):
        assert (title, total, shown) == (engine.spec.name, STEPS, True)
        yield lambda: counted.append(1)

    monkeypatch.setattr("segue.engine.prompts.parity.progress_bar", bar)
    run = from_engine(engine, None, progress=True, callback=lambda info: seen.append(info.call) or info.call < 2)
    assert len(counted) == run.calls == 3
    assert seen == [0, 1, 2]


def test_a_run_without_steps_is_one_of_the_default_number(engine):
    embeddings = engine.encode(PROMPTS[0], "x", max_sequence_length=T5_TOKENS)
    runs = [engine.sample(embeddings, seeds=[3], numerics="diffusers", steps=steps) for steps in (None, DEFAULT_STEPS)]
    assert runs[0].calls == DEFAULT_STEPS
    assert torch.equal(runs[0].latents, runs[1].latents)


def test_it_takes_the_scheduler_as_it_is(engine, monkeypatch):
    """Said before prompts are encoded."""
    monkeypatch.setattr(engine, "encode", lambda *_, **__: pytest.fail("the prompt was encoded"))
    with pytest.raises(ValueError, match="takes no schedule or solver"):
        engine.generate("a leaf", numerics="diffusers", schedule="linear", solver="euler")
    with pytest.raises(ValueError, match="takes no max_batch or check_finite"):
        engine.generate("a leaf", numerics="diffusers", max_batch=1, check_finite=True)
    with pytest.raises(ValueError, match="unknown numerics 'exact'"):
        engine.generate("a leaf", numerics="exact")


def test_what_diffusers_cannot_do_is_refused(engine, monkeypatch):
    with pytest.raises(ValueError, match="numerics='diffusers' guides all latent channels, got channels 3"):
        from_engine(engine, CFG(2.0, channels=3))
    levels, weights = engine.plan(None, steps=STEPS).schedule.sigmas, rounded_fingerprint(engine.models)
    numbers = dict.fromkeys((field.name for field in fields(Calibration)), 0) | {"solver": "euler", "height": 8, "width": 8}
    made = {"rule": rule_text(CFG(2.0)), "sigmas": levels, "weights": weights, "reuse": (Reuse(2),)}
    refused = {
        "RescaledDeviation (phi 0.5)": CFG(2.0) + Rescale(0.5),
        "reused directions": CFG(2.0).reused(2),
        "a calibration": CFG(2.0).calibrated(Calibration(**numbers | made)),
        "branches that stop": CFG(2.0).adaptive(0.9),
    }
    for extra, rule in refused.items():
        told = f"numerics='diffusers' adds up the terms of each call, and the rule has {extra}"
        with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
            from_engine(engine, rule)
    use_scheduler(engine, monkeypatch, "rounded times")
    with pytest.raises(ValueError, match="UniPCMultistepScheduler has no scale_noise, which diffusers' image-to-image calls"):
        from_engine(engine, None, latents=torch.zeros(2, 4, 8, 8), strength=0.6)
