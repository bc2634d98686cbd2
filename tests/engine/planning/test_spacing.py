"""Karras, exponential and beta levels: diffusers' schedulers with the options of these names, and the beta law itself."""

import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import tiny_sit

from segue import CFG
from segue.engine.core import resolve_plan
from segue.engine.planning import schedule, spacing
from segue.engine.planning.schedule import SPACINGS, resolve_schedule
from segue.engine.planning.solvers import EULER
from segue.models.parameterization import Parameterization

STEPS = (1, 2, 5, 28)
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(60)
SINGLE = 1e-6  # diffusers' levels are fp32, relative to the first
CHAIN = 2e-4  # its chain is fp32, and the first variance the difference of 1 and .9999: 2^-25 of 1e-4, half of that in the root


def beta_share(x: float, alpha: float, beta: float) -> float:
    """By quadrature after ``t = w^(1/alpha)``, which takes the end at 0 away; the other end is that of the mirrored law."""
    if x > 0.5:
        return 1 - beta_share(1 - x, beta, alpha)
    end = x**alpha
    inner = (1 - (end * (POINTS + 1) / 2) ** (1 / alpha)) ** (beta - 1)
    return float(end / 2 * (WEIGHTS * inner).sum() / alpha * math.gamma(alpha + beta) / math.gamma(alpha) / math.gamma(beta))


def beta_quantile(share: float, alpha: float, beta: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_share(middle, alpha, beta) < share else (low, middle)
    return round(high, 14)


@pytest.fixture
def scheduler_of(monkeypatch):
    """A scheduler of diffusers with the option for a list; the package whose quantiles it takes need not be here."""

    def make(kind: str, name: str, steps: int, **options):
        module = importlib.import_module(f"diffusers.schedulers.{kind}")
        monkeypatch.setattr(module, "is_scipy_available", lambda: True)
        law = SimpleNamespace(stats=SimpleNamespace(beta=SimpleNamespace(ppf=beta_quantile)))
        monkeypatch.setattr(module, "scipy", law, raising=False)
        class_name = "FlowMatchEulerDiscreteScheduler" if "flow" in kind else "EulerDiscreteScheduler"
        scheduler = getattr(module, class_name)(**{f"use_{name}_sigmas": True}, **options)
        scheduler.set_timesteps(steps)
        return scheduler

    return make


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SPACINGS)
def test_levels_of_a_flow_model(name, steps, scheduler_of):
    scheduler = scheduler_of("scheduling_flow_match_euler_discrete", name, steps)
    spec = tiny_sit().spec
    ours = resolve_schedule(name, steps, EULER, Parameterization(spec), 1)
    assert ours.name == name and np.allclose(ours.array(), scheduler.sigmas, rtol=0, atol=SINGLE)
    assert getattr(schedule, name)(steps).sigmas == ours.sigmas


@pytest.mark.parametrize("steps", STEPS[1:])  # diffusers makes a single step from the last level
@pytest.mark.parametrize("name", SPACINGS)
def test_levels_of_a_discrete_chain(name, steps, scheduler_of):
    """Before and after the nearest level of the chain is taken, in whose index diffusers interpolates and rounds."""
    chain = {"beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
    scheduler = scheduler_of("scheduling_euler_discrete", name, steps, **chain)
    spec = tiny_sit(prediction="epsilon", time="discrete", out_channels=8).spec
    plan = resolve_plan({"main": spec}, CFG(1.0), steps, schedule=name)
    exploding = scheduler.sigmas.double().numpy()
    assert np.allclose(plan.schedule.array(), exploding / (1 + exploding), rtol=CHAIN, atol=0)
    indices = plan.parameterization.network_time(plan.sigmas)
    assert (np.abs(indices - scheduler.timesteps.double().numpy()) <= 0.5 + 1e-3).all()


def test_quantiles_of_beta_laws_that_have_a_formula():
    shares = np.concatenate([np.linspace(0, 1, 33), [1e-9, 1 - 1e-9]])
    formulas = {
        (0.5, 0.5): np.sin(math.pi * shares / 2) ** 2,
        (1.0, 1.0): shares,
        (0.6, 1.0): shares ** (1 / 0.6),
        (1.0, 2.3): 1 - (1 - shares) ** (1 / 2.3),
    }
    for law, expected in formulas.items():
        assert np.allclose(spacing.beta_quantiles(shares, *law), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.6), (0.5, 0.25), (0.25, 0.5)])
def test_shares_of_the_beta_law(alpha, beta):
    inside = np.linspace(0, 1, 41)
    expected = [beta_share(x, alpha, beta) for x in inside]
    assert np.allclose(spacing.beta_shares(inside, alpha, beta), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SPACINGS)
def test_levels_end_where_they_are_told_to(name):
    levels = getattr(schedule, name)(7, first=0.9, last=0.02)
    assert levels.steps == 7 and levels.sigmas[0] == pytest.approx(0.9, rel=1e-12) and levels.sigmas[-1] == 0
    assert levels.sigmas[-2] == pytest.approx(0.02, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: schedule.karras(5, rho=0), "rho must be positive, got 0"),
        (lambda: schedule.karras(5, rho=math.inf), "rho must be positive, got inf"),
        (lambda: schedule.exponential(5, last=0), "exponential levels need 0 < last <= first <= 1, got first 1 and last 0"),
        (lambda: schedule.beta(5, first=2), "beta levels need 0 < last <= first <= 1, got first 2 and last 0.001"),
        (lambda: schedule.karras(5, last=math.nan), "karras levels need 0 < last <= first <= 1, got first 1 and last nan"),
        (lambda: schedule.beta(5, alpha=-1), "alpha must be positive, got -1"),
        (lambda: schedule.karras(0), "steps must be at least 1, got 0"),
    ],
)
def test_bad_levels_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        call()
