"""Solvers as rows against diffusers' schedulers of the same names, on the same network outputs and noise."""

import sys
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from recorded_outputs import rows_run, scheduler_run

from segue.engine.planning.solvers import get_solver

STEPS = (2, 5, 28)
SHAPE = (1, 2, 3, 5)
# fp32 on both sides, at most 28 steps whose numbers are of order one, relative to the largest value
SINGLE = 1e-5
# fp64 on both sides; diffusers' DEIS divides by the clean part of its first level, 3e-4, and multiplies by that of the second
DOUBLE = 1e-12
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
BH1 = {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}
UNIPC, DEIS, DPM = "UniPCMultistepScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"
KINDS = ("midpoint", "heun")
CASES = [
    *((UNIPC, f"unipc(order={order})", {"solver_order": order}) for order in (1, 2, 3)),
    # with the last level 0 its weights are infinite times zero
    *((UNIPC, f"unipc(order={order}, kind=bh1)", {"solver_order": order, **BH1}) for order in (1, 2, 3)),
    (UNIPC, "unipc(corrector=false)", {"disable_corrector": [*range(28)]}),
    *((DEIS, f"deis(order={order})", {"solver_order": order}) for order in (1, 2, 3)),
    (DEIS, "deis(order=3, lower_final=false)", {"solver_order": 3, "lower_order_final": False}),
    *((DPM, f"dpm++{n}m(kind={kind})", {"solver_order": n, "solver_type": kind}) for n in (2, 3) for kind in KINDS),
    (DPM, "dpm++3m(lower_final=false)", {"solver_order": 3, "lower_order_final": False}),
    (DPM, "res_2m", {"solver_type": "heun"}),
    *((DPM, f"dpm++2m-sde(kind={kind})", {"algorithm_type": "sde-dpmsolver++", "solver_type": kind}) for kind in KINDS),
]
PRECISE = (UNIPC, DEIS)  # DPMSolverMultistepScheduler casts the sample to fp32


def made(name: str, steps: int, dtype: torch.dtype, **options: Any) -> Any:
    """A scheduler of diffusers with its timesteps set, its levels in ``dtype``."""
    import diffusers

    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.to(dtype)
    return scheduler


def draws(seed: int, count: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.fixture
def drawn_by(monkeypatch):
    """Let the module of a scheduler draw given noises, one after the other."""

    def give(scheduler: Any, noises: list[torch.Tensor]) -> None:
        following = iter(noises)
        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(following), raising=False)

    return give


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest, relative to the largest value; infinite for values that are not finite."""
    found = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    return found if np.isfinite(found) else float("inf")


def flow_runs(name, solver, options, steps, dtype, seed, drawn_by) -> tuple[torch.Tensor, torch.Tensor]:
    """What the rows and the scheduler make of the same velocities."""
    scheduler = made(name, steps, dtype, **options, **FLOW)
    (state, *outputs), noises = draws(seed, steps + 1, dtype), draws(seed + 1, steps, dtype)
    drawn_by(scheduler, noises)
    ours = rows_run(get_solver(solver), scheduler.sigmas.tolist(), state, outputs, noises)
    return ours, scheduler_run(scheduler, state, outputs)


def named(case) -> str:
    return case if isinstance(case, str) else ""


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "solver", "options"), [case for case in CASES if case[0] != DEIS], ids=named)
def test_flow_matching_in_single_precision(name, solver, options, steps, seed, drawn_by):
    assert difference(*flow_runs(name, solver, options, steps, torch.float32, seed, drawn_by)) < SINGLE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "solver", "options"), [case for case in CASES if case[0] in PRECISE], ids=named)
def test_flow_matching_in_double_precision(name, solver, options, steps, seed, drawn_by):
    assert difference(*flow_runs(name, solver, options, steps, torch.float64, seed, drawn_by)) < DOUBLE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_single_precision_is_nearer_to_its_double_than_diffusers(order, steps, seed, drawn_by):
    """diffusers divides by the clean part of the first level, 3e-4, and loses as many digits; the row is of order one."""
    run = partial(flow_runs, DEIS, f"deis(order={order})", {"solver_order": order}, steps, seed=seed, drawn_by=drawn_by)
    ours, theirs = run(dtype=torch.float32)
    _, exact = run(dtype=torch.float64)
    assert difference(ours, exact) < SINGLE
    assert difference(theirs, exact) < 3334 * 2**-24 * steps


# --- noise prediction, on a variance-preserving chain ------------------------------------------------------------------


def flow_levels(exploding: torch.Tensor) -> list[float]:
    """Flow levels ``r / (1 + r)`` of those of ``x0 + r eps``."""
    exploding = exploding.double()
    return (exploding / (1 + exploding)).tolist()


def preserving(level: float) -> float:
    """Factor from flow coordinates to ``alpha x0 + s eps``."""
    return 1 / float(np.hypot(level, 1 - level))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "solver", "options"), CASES, ids=named)
def test_noise_prediction(name, solver, options, steps, seed, drawn_by):
    for dtype in (torch.float32, torch.float64) if name in PRECISE else (torch.float32,):
        ours, theirs = noise_runs(name, solver, options, steps, dtype, seed, drawn_by)
        assert difference(ours, theirs) < (DOUBLE if dtype == torch.float64 else SINGLE)


def noise_runs(name, solver, options, steps, dtype, seed, drawn_by) -> tuple[torch.Tensor, torch.Tensor]:
    """What the rows and the scheduler make of the same predicted noise, in flow coordinates."""
    scheduler = made(name, steps, dtype, **options)
    (state, *outputs), noises = draws(seed, steps + 1, dtype), draws(seed + 1, steps, dtype)
    levels = flow_levels(scheduler.sigmas)
    drawn_by(scheduler, noises)
    ours = rows_run(get_solver(solver), levels, state / preserving(levels[0]), outputs, noises, noise=True)
    return ours, scheduler_run(scheduler, state, outputs) / preserving(levels[-1])


# --- solvers that come back with new noise -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", STEPS)
def test_ancestral_euler(steps, seed, drawn_by):
    """The scheduler's state is ``x0 + r eps``: the flow's over its clean part."""
    scheduler = made("EulerAncestralDiscreteScheduler", steps, torch.float32)
    (state, *outputs), noises = draws(seed, steps + 1), draws(seed + 1, steps)
    levels = flow_levels(scheduler.sigmas)
    drawn_by(scheduler, noises)
    ours = rows_run(get_solver("euler-ancestral"), levels, state * levels[0], outputs, noises, noise=True)
    assert difference(ours, scheduler_run(scheduler, state * levels[0] / (1 - levels[0]), outputs)) < SINGLE


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", STEPS)
def test_ancestral_euler_in_flow_levels(steps, eta, seed, drawn_by):
    from diffusers import LTXEulerAncestralRFScheduler

    scheduler = LTXEulerAncestralRFScheduler(eta=eta)
    scheduler.set_timesteps(sigmas=(np.linspace(1, 0, steps + 1) ** 1.5).tolist())
    (state, *outputs), noises = draws(seed, steps + 1), draws(seed + 1, steps)
    drawn_by(scheduler, noises)
    solver = get_solver(f"euler-ancestral(eta={eta}, levels=flow)")
    ours = rows_run(solver, scheduler.sigmas.tolist(), state, outputs, noises)
    theirs = state
    for time, output in zip(scheduler.timesteps[:steps], outputs, strict=True):
        theirs = scheduler.step(output, time, theirs, return_dict=False)[0]
    assert difference(ours, theirs) < SINGLE


@pytest.mark.parametrize(
    ("name", "options"),
    [("FlowMatchLCMScheduler", {"shift": 3.0}), ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True})],
    ids=named,
)
@pytest.mark.parametrize("steps", STEPS)
def test_lcm_of_flow_models(name, options, steps, seed, drawn_by, monkeypatch):
    scheduler = made(name, steps, torch.float32, **options)
    (state, *outputs), noises = draws(seed, steps + 1), draws(seed + 1, steps)
    drawn_by(scheduler, noises)
    following = iter(noises)
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: next(following))
    ours = rows_run(get_solver("lcm"), scheduler.sigmas.tolist(), state, outputs, noises)
    assert difference(ours, scheduler_run(scheduler, state, outputs)) < SINGLE


@pytest.mark.parametrize("steps", STEPS)
def test_lcm_of_noise_prediction(steps, seed, drawn_by):
    """Whose clean estimate the scheduler mixes with the state, by less than the tolerance."""
    scheduler = made("LCMScheduler", steps, torch.float32, clip_sample=False)
    (state, *outputs), noises = draws(seed, steps + 1), draws(seed + 1, steps)
    alphas = scheduler.alphas_cumprod[scheduler.timesteps].double()
    levels = [*flow_levels(((1 - alphas) / alphas).sqrt()), 0.0]
    drawn_by(scheduler, noises)
    ours = rows_run(get_solver("lcm"), levels, state / preserving(levels[0]), outputs, noises, noise=True)
    assert difference(ours, scheduler_run(scheduler, state, outputs)) < SINGLE


class BrownianPath:
    """Increments over their deviation, from a level down to two others, the nearer one first."""

    def __init__(self, noises: list[torch.Tensor]):
        self.noises, self.nearer = iter(noises), {}

    def __call__(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        new = next(self.noises)
        if float(start) not in self.nearer:
            self.nearer[float(start)] = end, new
            return new
        middle, first = self.nearer[float(start)]
        return ((start - middle).sqrt() * first + (middle - end).sqrt() * new) / (start - end).sqrt()


@pytest.mark.parametrize("steps", STEPS)
def test_dpm_solver_sde(steps, seed, monkeypatch):
    """Two calls a step; given noise makes the Brownian path, in the place of the package that diffusers imports for it."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    scheduler = DPMSolverSDEScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear")
    scheduler.set_timesteps(steps)
    calls = len(scheduler.timesteps)
    (state, *outputs), noises = draws(seed, calls + 1), draws(seed + 1, calls)
    scheduler.noise_sampler = BrownianPath(noises)
    levels = flow_levels(torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]))
    assert len(levels) == steps + 1
    ours = rows_run(get_solver("dpm++sde"), levels, state * levels[0], outputs, noises, noise=True)
    assert difference(ours, scheduler_run(scheduler, state * levels[0] / (1 - levels[0]), outputs)) < SINGLE
