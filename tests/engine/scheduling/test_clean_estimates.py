"""A preview is the network's clean estimate at the state of its call, whatever solver steps from there, or there is none."""

from dataclasses import replace

import diffusers
import pytest
import torch
from live_sets import engine_of
from lone_requests import drawing_of
from tiny_models import tiny_sit

from segue import CFG, NAG, S2, CFGZeroStar, Engine, Rescale
from segue.engine.adapters.scheduler_solver import SchedulerSolver, scheduler_run
from segue.engine.core import EngineCore
from segue.engine.planning.plan import Plan
from segue.engine.planning.solvers import SOLVERS, VELOCITY
from segue.engine.scheduling.drawing import Drawing
from segue.engine.scheduling.lane_runs import LinearRun, ProgramRun
from segue.engine.scheduling.scheduler import StepScheduler
from segue.engine.scheduling.solo import SoloRun

LEVELS = (0.96, 0.8, 0.55, 0.3, 0.1, 0.02, 0.01, 0.0)
OPTIONS = ("unipc(order=3)", "deis(order=3)", "dpm++2m(kind=heun)", "euler-ancestral(eta=0.5,levels=flow)", "dpm++sde(eta=0)")
# fp32, of the largest value: what a step took from the state is divided by its share of that, here by 1 / 27 at the least
ERROR = 1e-4
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(channels=3), device="cpu")


@pytest.fixture(scope="module")
def chain_engine():
    """On a network of noise with a learned variance."""
    changes = {"prediction": "epsilon", "time": "discrete", "out_channels": 8, "frequency_shift": 1.0, "mlp_norm_eps": 1e-5}
    return Engine(tiny_sit(1, **changes), device="cpu")


def previews(engine: EngineCore, plan: Plan) -> tuple[list, list, list, torch.Tensor, type]:
    """Of a request: its states, what is shown of every call, the network's clean estimates, its result, the kind of its run."""
    drawing, heard = drawing_of(engine, plan, 5), []
    seen = replace(drawing, pictured=lambda latents: latents.clone())
    scheduler = StepScheduler(engine, lambda what, guidance: seen, start=False)
    request = scheduler.submit(0, previews=1, listener=heard.append)
    scheduler._admit()
    (run,) = scheduler._running
    states = []
    while not run.ended:
        states.append(run.x.clone())
        scheduler.tick()
    result = request.result(timeout=60)
    scheduler.close()
    shown = [event.picture for event in heard][:-1]
    estimates = [estimate(engine, plan, drawing, call, state) for call, state in enumerate(states)][:-1]
    return states[:-1], shown, estimates, result, type(run)


def estimate(engine: EngineCore, plan: Plan, drawing: Drawing, call: int, state: torch.Tensor) -> torch.Tensor:
    """``x - sigma v`` of the network under the rule, alone, at the state before a call."""
    sigma = float(plan.sigmas[call])
    own = engine.plan(plan.guidance, schedule=(sigma, 0.0), solver=VELOCITY)
    program = engine.prepare(own, drawing.start.conditions, [drawing.seed], state)
    program.step(own.live[0])
    velocity = program.x.clone()
    engine.release(program)
    return state - sigma * velocity


def check(found: list, states: list, estimates: list) -> None:
    for call, (picture, state, clean) in enumerate(zip(found, states, estimates, strict=True)):
        scale = float(clean.abs().max())
        assert float((picture - clean).abs().max()) < ERROR * scale, f"call {call}"
        assert float((picture - state).abs().max()) > 10 * ERROR * scale, f"call {call} shows its state"


@pytest.mark.parametrize("rule", [CFG(2.0), CFG(2.0) + Rescale(0.5)], ids=["of sums", "of a correction"])
@pytest.mark.parametrize("solver", [*(name for name in SOLVERS if name != "ddpm"), *OPTIONS])
def test_a_preview_is_the_clean_estimate_of_its_call(engine, solver, rule):
    plan = engine.plan(rule, schedule=LEVELS, solver=solver)
    states, found, estimates, result, kind = previews(engine, plan)
    assert kind is (ProgramRun if rule.corrections else LinearRun)
    check(found, states, estimates)
    # from level .02 on the sample moves by as much of its noise
    assert float((found[-1] - result).abs().max()) < 0.1 * float(result.abs().max())


@pytest.mark.parametrize("solver", ["euler", "lcm", "dpm++2m-sde", "ddpm"])
def test_a_preview_of_a_network_of_noise(chain_engine, solver):
    """The variance that it has learned multiplies the noise of its own solver."""
    plan = chain_engine.plan(CFG(2.0), steps=6, solver=solver)
    states, found, estimates, _, kind = previews(chain_engine, plan)
    assert kind is (SoloRun if solver == "ddpm" else LinearRun)
    check(found, states, estimates)


@pytest.mark.parametrize("kind", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler"])
def test_a_preview_of_steps_that_a_scheduler_of_diffusers_makes(kind):
    engine = engine_of("sd3.5-medium", device="cpu")
    settings = FLOW | ({"algorithm_type": "sde-dpmsolver++"} if kind.startswith("DPM") else {})
    schedule, solver = scheduler_run(getattr(diffusers, kind)(**settings), 6, 16)
    assert isinstance(solver, SchedulerSolver)
    plan = engine.plan(CFG(2.0), schedule=schedule, solver=solver)
    states, found, estimates, _, run = previews(engine, plan)
    assert run is SoloRun
    check(found, states, estimates)


@pytest.mark.parametrize(("rule", "kind"), [(NAG(3.0), LinearRun), (CFG(2.0) + S2(0.5), SoloRun)], ids=["nag", "s2"])
def test_a_preview_of_a_run_with_a_second_text_and_of_one_alone(rule, kind):
    engine = engine_of("sd3", device="cpu")
    plan = engine.plan(rule, schedule=LEVELS, solver="dpm++2m")
    states, found, estimates, _, run = previews(engine, plan)
    assert run is kind
    check(found, states, estimates)


def test_a_call_without_an_estimate_shows_none(engine):
    """A step without a velocity, and one of no length, tell nothing of the clean sample: the state is no picture of it."""
    silent = engine.plan(CFG(2.0) + CFGZeroStar(zero_steps=2), schedule=LEVELS)
    _, found, _, _, _ = previews(engine, silent)
    assert [picture is None for picture in found] == [True, True, False, False, False, False]
    short = engine.plan(CFG(2.0), schedule=(0.9, 0.6, 0.6, 0.3, 0.0))
    _, found, _, _, _ = previews(engine, short)
    assert [picture is None for picture in found] == [False, True, False]
