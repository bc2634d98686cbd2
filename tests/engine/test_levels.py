"""Noise levels as loops really ask for them: rounded to half precision, on devices without fp64, twice in a row, or unset."""

import pytest
import torch
from attached_runs import draw, relative_error
from tiny_models import tiny_sit
from tiny_sd3 import tiny_pipeline

import segue
from segue import APG, CFG, SGG, Engine, SkipLayer, Window, from_scheduler
from segue.engine.adapters.scheduler_calls import SchedulerCalls
from segue.engine.device import resolve_dtype
from segue.engine.planning.schedule import flow_shift
from segue.engine.planning.solvers import SOLVERS

LABELS, SEEDS = [0, 3, 5], [7, 8, 9]
ERROR = 2e-5  # two fp32 runs that sum in another order
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
RULE = SGG(CFG(3.0), SkipLayer(2.0, (1, 3)), 0.5)
BY_STEPS = CFG(3.0, window=Window.steps(1, 10)) + SkipLayer(2.0, (1, 3), window=Window.steps(11, 28))


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(), device="cpu")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(seed=35)


def noise(batch=3, shape=(4, 6, 10)):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


# --- half precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["sigma", "x", "both"])
@pytest.mark.parametrize("dtype", HALF.values(), ids=HALF)
def test_a_level_rounded_by_the_loop_is_the_level_that_it_means(engine, dtype, where):
    """Every call evaluates the row of its own level: the velocity is that at the exact one, windows in steps and all."""
    sigmas = flow_shift(28, 3.0).sigmas
    exact = engine.denoiser(BY_STEPS, LABELS, schedule=sigmas).velocity
    rounded = engine.denoiser(BY_STEPS, LABELS, schedule=sigmas).velocity
    x = noise().to(dtype if where != "sigma" else torch.float32)
    for sigma in sigmas[:-1]:
        level = torch.full((3,), sigma)
        asked = level.to(dtype) if where != "x" else level.to(dtype).float()  # a loop in half, whose caller widens
        assert torch.equal(rounded(x, asked), exact(x, level))


def test_a_level_that_none_rounds_to_is_refused(engine):
    denoiser = engine.denoiser(BY_STEPS, LABELS, schedule=flow_shift(5, 3.0).sigmas)
    for dtype in (*HALF.values(), torch.float32, torch.float64):
        with pytest.raises(ValueError, match=r"sigma 0\.69.* is not one of the 5 levels this was made for"):
            denoiser(noise(), torch.full((3,), 0.695, dtype=dtype))
    with pytest.raises(ValueError, match=r"sigma 0\.9232.* is not one of the 5 levels"):
        denoiser(noise(), torch.full((3,), flow_shift(5, 3.0).sigmas[1] + 2e-4))  # fp32 does not round so far


@pytest.mark.parametrize("path", ["schedule", "none"])
def test_a_live_denoiser_in_half_precision_stays_in_one_run(monkeypatch, path):
    """Its levels fall, if only as its dtype has them; the look at the transformer is once a run."""
    engine, looked, sigmas = Engine.from_pipe(tiny_pipeline(seed=34).to(torch.bfloat16)), [], flow_shift(9, 3.0).sigmas[2:]
    embeddings = engine.encode("leaf")
    denoiser = engine.denoiser(CFG(2.0), embeddings, schedule=sigmas if path == "schedule" else None)
    refresh = engine.refresh
    monkeypatch.setattr(engine, "refresh", lambda: looked.append(1) or refresh())
    for _ in range(2):
        for sigma in sigmas[:-1]:
            denoiser(noise(1, (4, 8, 8)).bfloat16(), torch.full((1,), sigma, dtype=torch.bfloat16))
    assert len(looked) == 2


def test_a_loop_by_hand_may_round_the_timestep(pipe):
    """As loops do that keep everything in the model's dtype: the call is the scheduler's, at its own level."""
    exact = by_hand(pipe, torch.float32)
    segue.attach(pipe, None)
    try:
        assert relative_error(by_hand(pipe, torch.bfloat16), exact) < ERROR
    finally:
        segue.detach(pipe)


# --- devices without fp64 ----------------------------------------------------------------------------------------------


class WithoutDouble(torch.Tensor):
    """A tensor on a device that has no fp64, until it is brought to the host."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, WithoutDouble) and result.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return result


def test_levels_are_made_fp64_on_the_host(engine):
    sigma = torch.full((3,), 0.7)
    with pytest.raises(TypeError, match="no float64"):
        sigma.as_subclass(WithoutDouble).double()
    for schedule in (None, [1.0, 0.7, 0.0]):
        denoiser = engine.denoiser(RULE, LABELS, schedule=schedule)
        found = denoiser(noise(), sigma.as_subclass(WithoutDouble))
        assert torch.equal(found.as_subclass(torch.Tensor), denoiser(noise(), sigma))


def test_fp64_levels_of_the_host_do_not_reach_the_device(engine):
    """A loop may keep its levels in fp64 on the CPU: what meets the state is fp32."""
    denoiser, level = engine.denoiser(RULE, LABELS), torch.full((3,), 0.7, dtype=torch.float64)
    kinds = []

    class Kinds(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.Tensor.to and torch.device("cpu") in args[1:] and isinstance(result, torch.Tensor):
                kinds.append(result.dtype)
            return result

    with Kinds():
        denoiser(noise(), level)
    assert kinds and torch.float64 not in kinds


def test_tables_are_made_fp32_on_the_host(engine):
    """What is copied into a buffer, which may lie on such a device, has no more than its precision already."""
    wider = []

    class Copies(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.copy_.default and args[1].dtype == torch.float64:
                wider.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    rule = CFG(2.0) + SkipLayer(2.0, (1,)).reused(2) + APG(-0.5, 3.0, 0.3)
    with Copies():
        engine.sample(LABELS, rule, steps=3, seeds=SEEDS)
    assert not wider
    with pytest.raises(ValueError, match="mps has no float64; float32, bfloat16 and float16"):
        resolve_dtype("float64", torch.device("mps"))


def test_the_fingerprint_is_taken_on_the_host(engine):
    from segue.models.fingerprint import fingerprint

    model = engine.models["main"]
    states = {name: tensor.as_subclass(WithoutDouble) for name, tensor in model.state_dict().items()}
    stand_in = type("Network", (), {"state_dict": lambda self: states})()
    assert fingerprint({"main": stand_in}) == fingerprint({"main": model})


# --- a level twice in a row --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "ddpm"])  # of a DiT alone: in its own file
@pytest.mark.parametrize("levels", [(1.0, 0.6, 0.3, 0.0, 0.0), (1.0, 1.0, 0.6, 0.3, 0.0)], ids=["last", "first"])
def test_a_step_of_no_length_changes_nothing(engine, solver, levels):
    once = tuple(dict.fromkeys(levels))
    runs = [engine.sample(LABELS, RULE, schedule=given, solver=solver, seeds=SEEDS) for given in (levels, once)]
    if SOLVERS[solver].stochastic and levels[0] == levels[1]:
        return  # its noise is that of the call's number, and there is one call more before it
    assert relative_error(runs[0].latents, runs[1].latents) < ERROR
    assert runs[0].plan.schedule.steps == 4


@pytest.mark.parametrize("solver", ["heun", "ab2", "dpm++2m", "dpm++3m", "unipc", "unipc(order=3)", "deis(order=3)", "res_3m"])
def test_a_multistep_solver_goes_on_after_a_step_of_no_length(engine, solver):
    """With less memory for one step, so not exactly as without, but finite and near."""
    levels = torch.linspace(1, 0, 21).tolist()
    twice = engine.sample(LABELS, None, schedule=[*levels[:10], levels[9], *levels[10:]], solver=solver, seeds=SEEDS).latents
    assert relative_error(twice, engine.sample(LABELS, None, schedule=levels, solver=solver, seeds=SEEDS).latents) < 0.02


def test_a_denoiser_takes_the_last_level_twice(engine):
    levels = (1.0, 0.6, 0.3, 0.0, 0.0)
    denoiser, x = engine.denoiser(CFG(3.0) + SkipLayer(2.0, (1,)).reused(2), LABELS, schedule=levels), noise()
    for s, t in zip(levels, levels[1:], strict=False):
        x = x + (t - s) * denoiser.velocity(x, torch.full((3,), s))
    run = engine.sample(LABELS, CFG(3.0) + SkipLayer(2.0, (1,)).reused(2), schedule=levels, noise=noise(), seeds=SEEDS)
    assert relative_error(x, run.latents) < ERROR


def test_samples_at_level_0_beside_others(engine):
    """Under a correction that divides by the level, too: a sample that its window leaves out there keeps its own velocity."""
    rule = CFG(3.0, window=Window.sigma(0, 1)) + APG(-0.5, 3.0, 0.3)
    x, sigma = noise(), torch.tensor([0.8, 0.0, 0.3])
    levels = [0.8, 0.3, 0.0, 0.0]
    together = engine.denoiser(rule, LABELS, schedule=levels).velocity(x, sigma)
    for i in range(3):
        alone = engine.denoiser(rule, LABELS[i : i + 1], schedule=levels).velocity(x[i : i + 1], sigma[i : i + 1])
        assert relative_error(together[i], alone[0]) < ERROR


# --- schedulers of a pipeline ------------------------------------------------------------------------------------------


def by_hand(pipe, dtype=None, **timesteps):
    """A loop written by hand with the pipeline's scheduler; ``dtype`` of the timestep."""
    text, _, pooled, _ = pipe.encode_prompt("leaf", None, None, max_sequence_length=6)
    pipe.scheduler.set_timesteps(**(timesteps or {"num_inference_steps": 5}))
    x = noise(1, (4, 8, 8))
    with torch.no_grad():
        for time in pipe.scheduler.timesteps:
            velocity = pipe.transformer(x, text, pooled, time.to(dtype).expand(1), return_dict=False)[0]
            x = pipe.scheduler.step(velocity, time, x, return_dict=False)[0]
    return x


CUSTOM = {
    "timesteps": {"timesteps": [1000.0, 900.0, 620.0, 250.0]},  # not shifted, where the sigmas that come of them are
    "timesteps and sigmas": {"timesteps": [990.0, 700.0, 20.0], "sigmas": [0.9, 0.6, 0.1]},
    "ending in 0": {"sigmas": [1.0, 0.6, 0.2, 0.0]},
    "rising": {"sigmas": [0.0, 0.2, 0.5, 0.9]},
}


@pytest.mark.parametrize("timesteps", CUSTOM.values(), ids=CUSTOM)
def test_a_loop_with_timesteps_of_its_own_runs_attached(pipe, timesteps):
    plain = by_hand(pipe, torch.float32, **timesteps)
    attachment = segue.attach(pipe, None)
    try:
        guided = by_hand(pipe, torch.float32, **timesteps)
        told = pipe.scheduler.timesteps.double().numpy() / 1000
        assert abs(attachment.plan.sigmas - told).max() < 1e-6  # windows go by what the network is told
    finally:
        segue.detach(pipe)
    assert relative_error(guided, plain) < ERROR


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
REPEATED = {
    "the last level stands twice": ("DEISMultistepScheduler", FLOW, 5),
    "ends at a level above the last": ("DPMSolverMultistepScheduler", FLOW | {"final_sigmas_type": "sigma_min"}, 400),
    "times rounded to the same": ("UniPCMultistepScheduler", FLOW, 600),
}


@pytest.mark.parametrize("name", REPEATED)
def test_levels_of_a_scheduler_that_do_not_fall_at_every_call(pipe, name):
    import diffusers

    kind, settings, steps = REPEATED[name]
    scheduler = getattr(diffusers, kind)(**settings)
    scheduler.set_timesteps(steps)
    calls = SchedulerCalls.of(scheduler)
    levels = calls.schedule.array()
    assert (levels[1:] <= levels[:-1]).all() and (levels[1:] == levels[:-1]).any()
    assert abs(1000 * levels[:-1] - scheduler.timesteps.numpy()).max() < 1e-9


class OwnScheduler:
    """One written by hand, with no more than a loop needs; none of diffusers' classes."""

    order, begin_index, step_index = 1, None, None

    def set_timesteps(self, num_inference_steps, device=None):
        self.sigmas = torch.linspace(1, 0, num_inference_steps + 1)
        self.timesteps, self.step_index = 1000 * self.sigmas[:-1], 0

    def step(self, velocity, time, x, return_dict=False):
        self.step_index += 1
        return (x + (self.sigmas[self.step_index] - self.sigmas[self.step_index - 1]) * velocity,)


def test_a_scheduler_of_ones_own_runs(monkeypatch, pipe):
    monkeypatch.setattr(pipe, "scheduler", OwnScheduler())
    plain = by_hand(pipe, torch.float32)
    segue.attach(pipe, None)
    try:
        assert relative_error(by_hand(pipe, torch.float32), plain) < ERROR
    finally:
        segue.detach(pipe)
    assert from_scheduler(pipe.scheduler).steps == 5
    runs = [Engine.from_pipe(pipe).generate("leaf", steps=5, seeds=[1], **given) for given in ({}, {"solver": "euler"})]
    assert runs[0].plan.solver.name == "OwnScheduler" and relative_error(runs[0].latents, runs[1].latents) < ERROR


def test_a_pipeline_given_level_0_runs_attached(pipe):
    """diffusers appends its own 0 to the levels it is given."""
    call = {"sigmas": [1.0, 0.6, 0.2, 0.0], "num_inference_steps": 4, "guidance_scale": 4.5}
    wanted = draw(pipe, **call)
    segue.attach(pipe, CFG(4.5))
    try:
        assert relative_error(draw(pipe, **call), wanted) < ERROR
    finally:
        segue.detach(pipe)


def test_timesteps_that_were_never_set_are_said_to_be_so():
    pipe = tiny_pipeline(seed=35)
    message = "the timesteps of FlowMatchEulerDiscreteScheduler are not set: call its set_timesteps before the run"
    text = {"encoder_hidden_states": torch.zeros(1, 5, 24), "pooled_projections": torch.zeros(1, 20)}
    for call in (
        lambda: segue.attach(pipe, None) and pipe.transformer(noise(1, (4, 8, 8)), timestep=torch.tensor([900.0]), **text),
        lambda: from_scheduler(pipe.scheduler),
        lambda: Engine(tiny_sit(), device="cpu").plan(schedule=pipe.scheduler),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    pipe.scheduler.set_timesteps(5)
    with pytest.raises(
        ValueError, match="at timestep 900, and the scheduler is at 1000: another pipeline runs, or a loop that"
    ):
        pipe.transformer(noise(1, (4, 8, 8)), timestep=torch.tensor([900.0]), **text)
