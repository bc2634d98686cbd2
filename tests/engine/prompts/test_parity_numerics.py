"""``numerics="diffusers"``: given the same network outputs, a run is bit for bit diffusers'; the network is ours."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from counted_rows import counted_rows, planned_rows
from published_sgg import PublishedSampler, Recipe
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import CFG, Engine, Rescale, SkipLayer, Window
from segue.engine.prompts.parity import combine_as_diffusers
from segue.engine.prompts.planning import DEFAULT_STEPS
from segue.engine.running.program import Program
from segue.kernels.record import Kernels
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


def use_upstream_network(engine, monkeypatch, separately: bool = False):
    """Evaluate every branch by diffusers' transformer, at the times that our rows were loaded with.

    Whole branches are one batch, uncond first, as in the pipeline, unless ``separately``.
    """
    load, upstream = MMDiTRows.load, engine.pipe.transformer

    def noted_load(rows, times, conditions):
        rows.given = times.float(), conditions
        load(rows, times, conditions)

    def branch_outputs(program, live):
        (rows,), plan = program.rows.values(), program.plan
        times, conditions = rows.given
        time, x = times[program.time_table.lookup[program.call, 0]], program.x.to(engine.dtype)

        def call(members, skip=None):
            texts = [conditions[plan.conditions.index(plan.branches[i].condition)] for i in members]
            out = upstream(
                hidden_states=torch.cat([x] * len(members)),
                timestep=torch.cat([time] * len(members)),
                encoder_hidden_states=torch.cat([text.context for text in texts]),
                pooled_projections=torch.cat([text.pooled for text in texts]),
                skip_layers=skip,
                return_dict=False,
            )[0]
            return dict(zip(members, out.chunk(len(members)), strict=True))

        whole = [i for i in live[::-1] if plan.branches[i].network is None]
        outputs = {}
        for members in [[i] for i in whole] if separately else [whole]:
            outputs |= call(members)
        for i in set(live) - set(whole):
            outputs |= call([i], list(plan.branches[i].network.layers))
        return [outputs[i] for i in live]

    monkeypatch.setattr(MMDiTRows, "load", noted_load)
    monkeypatch.setattr(Program, "branch_outputs", branch_outputs)


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


RECIPES = [Recipe(STEPS, 4.5, 0.0, (1, 3), 3.0, 0.0, (4, 5), (2, 3)), *(Recipe.random(seed) for seed in range(4))]


@pytest.mark.parametrize("recipe", RECIPES, ids=["published", *map(str, range(4))])
@pytest.mark.parametrize("scheduler", ["static", "heun"])
def test_given_the_network_a_run_is_the_published_loop_bit_for_bit(engine, scheduler, recipe, monkeypatch):
    """The published algorithm with diffusers' scheduler stepping; both stages of a Heun step follow one rule."""
    use_scheduler(engine, monkeypatch, scheduler)
    own, published = engine.pipe.scheduler, PublishedSampler(engine.pipe, PROMPTS, ["x", "x"])
    own.set_timesteps(recipe.steps)
    expected = torch.stack([torch.randn(4, 8, 8, generator=g, dtype=engine.dtype) for g in generators(SEEDS)])
    with torch.no_grad():
        for call, (level, time) in enumerate(zip(own.sigmas.tolist(), own.timesteps, strict=False)):
            velocity = published.velocity(recipe, expected, level, call // own.order + 1)
            expected = own.step(velocity, time, expected, return_dict=False)[0]
    use_upstream_network(engine, monkeypatch, separately=True)
    embeddings = engine.encode(PROMPTS, "x", max_sequence_length=T5_TOKENS)
    run = engine.sample(embeddings, recipe.rule, steps=recipe.steps, seeds=SEEDS, numerics="diffusers")
    assert torch.equal(run.latents, expected)


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
    for rule, extra in ((CFG(2.0) + Rescale(0.5), "Rescale"), (CFG(2.0).reused(2), "reused directions")):
        with pytest.raises(ValueError, match=f"adds up the terms of each call, and the rule has .*{extra}"):
            from_engine(engine, rule)
    use_scheduler(engine, monkeypatch, "rounded times")
    with pytest.raises(ValueError, match="UniPCMultistepScheduler has no scale_noise, which diffusers' image-to-image calls"):
        from_engine(engine, None, latents=torch.zeros(2, 4, 8, 8), strength=0.6)
