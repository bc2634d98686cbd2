"""``generate`` draws what the pipeline draws, whatever flow-matching scheduler it has, or refuses before any work."""

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from attached_runs import draw, relative_error
from counted_rows import counted_rows, planned_rows
from recorded_captures import Recorder
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import APG, CFG, Engine, SkipLayer, Window
from segue.engine.adapters.scheduler_solver import SchedulerSolver, scheduler_run, timed_scheduler
from segue.engine.planning.schedule import from_scheduler
from segue.kernels.philox import normal_noise

RUN = 1e-5  # two fp32 networks that sum in another order, over a run; see ATTACHED_RUN
STEPS, PROMPTS, SEEDS = 5, ["a leaf", "a twig"], [3, 2**40 + 5]
EULER, DPM = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
ROWS = {  # whose steps are rows of ours
    "static": (EULER, {"shift": 3.0}),
    "dynamic": (EULER, DYNAMIC),
    "dynamic, linear": (EULER, DYNAMIC | {"time_shift_type": "linear"}),
    "karras": (EULER, {"shift": 3.0, "use_karras_sigmas": True}),
    "exponential": (EULER, {"shift": 3.0, "use_exponential_sigmas": True}),
    "beta": (EULER, {"shift": 3.0, "use_beta_sigmas": True}),
    "inverted": (EULER, {"shift": 3.0, "invert_sigmas": True}),
    "terminal": (EULER, {"shift": 3.0, "shift_terminal": 0.1}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "stochastic": (EULER, {"shift": 3.0, "stochastic_sampling": True}),
    "lcm": ("FlowMatchLCMScheduler", {"shift": 3.0}),
    "ancestral": ("LTXEulerAncestralRFScheduler", {}),
    "ancestral, less": ("LTXEulerAncestralRFScheduler", {"eta": 0.4}),
}
STOCHASTIC = {
    "ancestral, more": ("LTXEulerAncestralRFScheduler", {"eta": 0.4, "s_noise": 1.1}),
    "dpm++ 2m sde": (DPM, FLOW | {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 2s sde": ("DPMSolverSinglestepScheduler", FLOW | {"algorithm_type": "sde-dpmsolver++"}),
    "sa-solver": ("SASolverScheduler", FLOW),
}
DETERMINISTIC = {
    "dpm++ 2m": (DPM, FLOW),
    "dpm++ 3m": (DPM, FLOW | {"solver_order": 3}),
    "dpm++ to the least level": (DPM, FLOW | {"final_sigmas_type": "sigma_min"}),
    "dpm++ dynamic": (DPM, FLOW | {"use_dynamic_shifting": True, "time_shift_type": "exponential"}),
    "dpm++ 2s": ("DPMSolverSinglestepScheduler", FLOW),
    "inverse": ("DPMSolverMultistepInverseScheduler", FLOW),
    "unipc": ("UniPCMultistepScheduler", FLOW),
    "deis": ("DEISMultistepScheduler", FLOW),
    "flow map": ("FlowMapEulerDiscreteScheduler", {}),
}
OWN = STOCHASTIC | DETERMINISTIC  # that make their steps themselves


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pipe(tiny_pipeline(seed=31))


@pytest.fixture
def use(engine, monkeypatch):
    """Gives the engine's pipeline one of the schedulers above."""

    def use(name):
        import diffusers

        kind, settings = (ROWS | OWN)[name]
        if name == "beta" and find_spec("scipy") is None:
            pytest.skip("diffusers takes beta sigmas from scipy")
        monkeypatch.setattr(engine.pipe, "scheduler", getattr(diffusers, kind)(**settings))

    return use


def noise_of_the_seeds(monkeypatch, pipe, seeds):
    """Have a scheduler's steps draw the noise that a run of ours draws: Philox, by seed and number of the draw."""
    module = import_module(type(pipe.scheduler).__module__)
    key, draws = torch.tensor(seeds), iter(range(1000))

    def randn_tensor(shape, generator=None, device=None, dtype=None, layout=None):
        assert generator is None and shape[0] == len(seeds)
        return normal_noise(key, torch.full_like(key, next(draws)), shape[1:].numel()).view(shape)

    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", randn_tensor)


def from_pipeline(pipe, monkeypatch, seeds=SEEDS, prompts=PROMPTS, **call):
    with monkeypatch.context() as patch:
        noise_of_the_seeds(patch, pipe, seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        settings = {"prompt": prompts, "generator": lambda: generators, "num_inference_steps": STEPS, "guidance_scale": 4.5}
        return draw(pipe, **(settings | call))


RULE = CFG(4.5)


def from_engine(engine, rule=RULE, seeds=SEEDS, prompts=PROMPTS, **options):
    return engine.generate(prompts, guidance=rule, seeds=seeds, max_sequence_length=T5_TOKENS, **({"steps": STEPS} | options))


@pytest.mark.parametrize("name", [*ROWS, *OWN])
def test_a_run_is_the_pipelines(engine, use, name, monkeypatch):
    use(name)
    before = vars(engine.pipe.scheduler).copy()
    with counted_rows() as rows:
        run = from_engine(engine, height=20, width=12)
    assert rows == planned_rows(run.plan, 2)
    assert all(vars(engine.pipe.scheduler)[key] is value for key, value in before.items())  # the pipeline's own is not used up
    assert isinstance(run.plan.solver, SchedulerSolver) == (name in OWN)
    assert relative_error(run.latents, from_pipeline(engine.pipe, monkeypatch, height=20, width=12)) < RUN


def test_one_call_tells_no_direction(engine, use, monkeypatch):
    """A scheduler's only step may go up."""
    use("inverted")
    run = from_engine(engine, steps=1)
    assert run.plan.schedule.sigmas == (0.0, 1.0)
    assert relative_error(run.latents, from_pipeline(engine.pipe, monkeypatch, num_inference_steps=1)) < RUN


def test_the_least_level_of_a_table_is_no_way_up(engine, use):
    """It lies above the last level of 300, also where that is the only one which is left."""
    use("dpm++ to the least level")
    schedule, _ = scheduler_run(engine.pipe.scheduler, 300, 16, strength=1 / 300)
    assert schedule.steps == 1 and not schedule.rises


@pytest.mark.parametrize("name", ["stochastic", "sa-solver", "unipc"])
def test_a_sample_does_not_depend_on_its_batch_nor_on_other_draws(engine, use, name):
    use(name)
    state = torch.get_rng_state()
    together = from_engine(engine).latents
    assert torch.equal(torch.get_rng_state(), state)
    for number in range(2):
        alone = from_engine(engine, seeds=SEEDS[number : number + 1], prompts=PROMPTS[number : number + 1]).latents
        assert relative_error(alone[0], together[number]) < RUN
    assert relative_error(from_engine(engine, max_batch=1).latents, together) < RUN


RULES = {
    "windows": CFG(4.5, window=Window.sigma(0.5, 1)) + SkipLayer(3.0, (1, 3), window=Window.sigma(0, 0.5)),
    "reuse": CFG(3.0) + SkipLayer(2.0, (1, 3)).reused(2),
    "average": CFG(4.0) + APG(-0.5, 3.0, 0.3),
}


@pytest.mark.parametrize(("name", "rule"), [*zip(("dpm++ 2m", "unipc", "dpm++ 2s"), RULES.values(), strict=True)], ids=RULES)
def test_rules_are_followed_as_where_they_are_attached(engine, use, name, rule):
    use(name)
    run = from_engine(engine, rule)
    attachment = segue.attach(engine.pipe, rule)
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        wanted = draw(engine.pipe, prompt=PROMPTS, generator=lambda: generators, num_inference_steps=STEPS, guidance_scale=2.0)
        assert attachment.plan.live == run.plan.live
    finally:
        segue.detach(engine.pipe)
    assert relative_error(run.latents, wanted) < RUN


@pytest.mark.parametrize(("name", "strength"), [("static", 0.8), ("heun", 0.35), ("stochastic", 0.8), ("lcm", 0.35)])
def test_image_to_image_is_the_pipelines(engine, use, name, strength, monkeypatch):
    from diffusers import StableDiffusion3Img2ImgPipeline

    use(name)
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    pipe = StableDiffusion3Img2ImgPipeline(**engine.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    wanted = from_pipeline(pipe, monkeypatch, image=clean, strength=strength, height=16, width=16)
    run = from_engine(engine, latents=clean, strength=strength)
    assert relative_error(run.latents, wanted) < RUN
    assert run.plan.schedule.steps == {0.35: 2, 0.8: 4}[strength]


@pytest.mark.parametrize("name", ["dpm++ 2m", "dpm++ 2s", "unipc"])
def test_image_to_image_by_schedulers_that_diffusers_pipeline_cannot_start(engine, use, name):
    """They lack ``scale_noise``; the oracle mixes by their ``add_noise`` and lets diffusers' network and scheduler run."""
    use(name)
    pipe, first = engine.pipe, 2
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    run = from_engine(engine, None, seeds=[1], prompts=["a leaf"], latents=clean, noise=noise, strength=0.7)
    text, _, pooled, _ = pipe.encode_prompt("a leaf", None, None, max_sequence_length=T5_TOKENS)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(first - 1)
    x = scheduler.add_noise(clean, noise, scheduler.timesteps[first - 1 : first])
    with torch.no_grad():
        for time in scheduler.timesteps[first - 1 :]:
            velocity = pipe.transformer(x, text, pooled, time.expand(1), return_dict=False)[0]
            x = scheduler.step(velocity, time, x, return_dict=False)[0]
    assert relative_error(run.latents, x) < RUN


def test_a_class_derived_from_one_that_is_known_makes_its_own_steps(engine, monkeypatch):
    from diffusers import FlowMatchEulerDiscreteScheduler

    class Halved(FlowMatchEulerDiscreteScheduler):
        def step(self, model_output, *args, **kwargs):
            return super().step(model_output / 2, *args, **kwargs)

    monkeypatch.setattr(engine.pipe, "scheduler", Halved(shift=3.0))
    assert relative_error(from_engine(engine).latents, from_pipeline(engine.pipe, monkeypatch)) < RUN


def test_a_solver_or_a_schedule_of_ours_keeps_its_meaning(engine, use):
    use("unipc")
    timed = type(engine.pipe.scheduler).from_config(engine.pipe.scheduler.config)
    timed.set_timesteps(STEPS)
    levels = from_scheduler(timed)
    own = from_engine(engine).latents
    euler = from_engine(engine, solver="euler")
    assert (euler.plan.solver.name, euler.plan.schedule) == ("euler", levels)
    assert torch.equal(euler.latents, from_engine(engine, schedule=levels, solver="euler", steps=None).latents)
    assert torch.equal(euler.latents, from_engine(engine, schedule=levels, steps=None).latents)
    assert relative_error(own, euler.latents) > 0.05
    assert torch.equal(from_engine(engine, schedule="native").latents, own)
    plan = engine.plan(steps=STEPS)
    assert torch.equal(from_engine(engine, solver=plan.solver, steps=None).latents, own)
    with pytest.raises(ValueError, match="UniPCMultistepScheduler steps between its own levels, 5 steps from"):
        from_engine(engine, solver=plan.solver, schedule="linear")


def test_a_scheduler_given_as_the_schedule(engine, use):
    """It gives levels; the solver is that of its steps where we have it, and has to be said where we do not."""
    for name in ("heun", "karras"):
        use(name)
        wanted, timed = from_engine(engine).latents, timed_scheduler(engine.pipe.scheduler, STEPS, 16)
        use("unipc")
        assert torch.equal(from_engine(engine, schedule=timed, steps=None).latents, wanted)
    timed = timed_scheduler(engine.pipe.scheduler, STEPS, 16)
    with pytest.raises(ValueError, match="schedule=UniPCMultistepScheduler gives its levels, and its steps are no rows"):
        from_engine(engine, schedule=timed, steps=None)
    assert from_engine(engine, schedule=timed, solver="ab2", steps=None).plan.schedule == from_scheduler(timed)


def test_a_loaded_program_steps_as_the_run_does(engine, use):
    use("dpm++ 2m sde")
    embeddings = engine.encode(PROMPTS, max_sequence_length=T5_TOKENS)
    run = engine.sample(embeddings, CFG(4.5), steps=STEPS, seeds=SEEDS)
    program = engine.load(run.plan, embeddings, SEEDS, engine.draw_noise(run.plan, SEEDS))
    for live in run.plan.live:
        program.advance(live)
    assert torch.equal(program.x, run.latents)
    program.use_graphs(Recorder())
    program.load(run.plan, engine.draw_noise(run.plan, SEEDS), engine._conditions(run.plan, embeddings), SEEDS)
    for live in run.plan.live:
        program.advance(live)
    assert torch.equal(program.x, run.latents)


def test_callbacks_see_the_states_between_the_schedulers_steps(engine, use, monkeypatch):
    use("dpm++ 2m")
    seen, states = [], []
    run = from_engine(engine, callback=lambda info: states.append(info.x.clone()), check_finite=True)
    from_pipeline(engine.pipe, monkeypatch, callback_on_step_end=lambda pipe, step, time, given: seen.append(given) or {})
    for ours, theirs in zip(states, seen, strict=True):
        assert relative_error(ours, theirs["latents"]) < RUN
    stopped = from_engine(engine, callback=lambda info: info.call < 2)
    assert stopped.calls == 3 and torch.equal(stopped.latents, states[2]) and run.calls == STEPS


@pytest.mark.parametrize("name", ["unipc", "dpm++ 2m"])
def test_times_that_are_rounded_to_the_same_are_steps_of_their_own(engine, use, name):
    """Of 600 steps the first two times are equal: a run begins at the first all the same, and has a step for every call."""
    use(name)
    schedule, solver = scheduler_run(engine.pipe.scheduler, 600, 16)
    assert schedule.sigmas[0] == schedule.sigmas[1]
    step, x = solver.begin(), torch.ones(1, 1, 1, 1)
    for _ in range(schedule.steps):
        x = step(x, torch.zeros_like(x), None)
    assert step.scheduler.step_index == 600
    assert x.isfinite().all()


REFUSED = {
    "other train steps": (EULER, {"num_train_timesteps": 500}, "at time 500 for noise level 1; .* times 1000 times as large"),
    "more train steps": (EULER, {"num_train_timesteps": 2000}, "at time 2000 for noise level 1; .* times 1000 times as large"),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"num_train_timesteps": 500}, "at time 500 for noise level 1; "),
    "lcm": ("FlowMatchLCMScheduler", {"num_train_timesteps": 500}, "at time 500 for noise level 1; "),
    "no flow": (DPM, {}, "for noise level 157.* a flow-matching scheduler"),
    "no levels": ("DDIMScheduler", {}, "DDIMScheduler has no sigmas; a flow-matching scheduler"),
    "the other way": ("MiniMaxH3Scheduler", {}, "at time 0 for noise level 1; "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_schedulers_are_refused_before_any_work(engine, name, monkeypatch):
    import diffusers

    kind, settings, message = REFUSED[name]
    monkeypatch.setattr(engine.pipe, "scheduler", getattr(diffusers, kind)(**settings))
    monkeypatch.setattr(engine, "encode", lambda *_, **__: pytest.fail("prompts were encoded"))
    for call in (lambda: from_engine(engine), lambda: engine.plan(CFG(4.5), steps=STEPS)):
        with counted_rows() as rows, pytest.raises((TypeError, ValueError), match=message) as caught:
            call()
        assert not rows and "\n" not in str(caught.value)


def test_a_scheduler_without_a_beginning_of_choice_starts_from_noise_only(engine, use, monkeypatch):
    use("inverse")
    clean, options = torch.zeros(2, 4, 8, 8), {"strength": 0.5}
    with pytest.raises(ValueError, match="DPMSolverMultistepInverseScheduler begins every run at its first step"):
        from_engine(engine, latents=clean, **options)
    run = from_engine(engine, numerics="diffusers")
    assert relative_error(run.latents, from_pipeline(engine.pipe, monkeypatch)) < RUN


def test_a_scheduler_that_changes_the_size_within_a_run_is_refused(engine, use):
    use("lcm")
    engine.pipe.scheduler.set_scale_factors([0.5, 1.0], "nearest")
    with pytest.raises(ValueError, match="FlowMatchLCMScheduler has scale factors, which change the size of the latents"):
        from_engine(engine)
