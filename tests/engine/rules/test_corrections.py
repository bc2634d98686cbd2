"""Corrections of a rule: their limits, what they refuse, and capture.  Their numbers are held by the random-plan oracle."""

import math

import pytest
import torch
from tiny_models import tiny_sit

from segue import APG, CFG, SGG, CFGZeroStar, EarlyExit, Engine, Rescale, SkipLayer, Window
from segue.engine.running.graph import WARM_UP_STEPS, CapturedStep

LABELS, SEEDS = [0, 3, 5], [7, 8, 9]
CORRECTIONS = [Rescale(0.7), CFGZeroStar(1), APG(-0.5, 2.0, 0.3)]
CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # branches are combined after the projection instead of before it


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(), device="cpu")


def draw(engine, rule, **options):
    return engine.sample(LABELS, rule, steps=6, seeds=SEEDS, **options).latents


@pytest.mark.parametrize("nothing", [Rescale(0.0), APG(0.0, math.inf, 1.0)], ids=str)
def test_without_effect_a_correction_leaves_the_rule_as_it_is(engine, nothing):
    assert torch.allclose(draw(engine, CFG(3.0) + nothing), draw(engine, CFG(3.0)), **CLOSE)


def test_a_fitted_reference_has_no_part_along_the_conditional_error(engine):
    """With u = 3 c the fitted reference is c itself: whatever the scale, the result is c."""
    from segue.kernels.corrections import cfg_zero_star

    c = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(cfg_zero_star(c, 3 * c, torch.tensor([2.0, 9.0])), c, atol=1e-5)
    assert not torch.allclose(draw(engine, CFG(3.0) + CFGZeroStar()), draw(engine, CFG(3.0)), **CLOSE)


def test_silent_steps_cost_nothing_and_leave_the_noise(engine):
    rule = CFG(3.0) + CFGZeroStar(zero_steps=2)
    run = engine.sample(LABELS, rule, steps=6, seeds=SEEDS)
    assert run.plan.cost.evaluations == 2 * 4
    assert run.plan.live[:3] == ((), (), (0, 1))
    seen = []
    engine.sample(LABELS, rule, steps=6, seeds=SEEDS, callback=lambda info: seen.append(info.x.clone()))
    noise = engine.draw_noise(run.plan, SEEDS)
    assert torch.equal(seen[1], noise)
    assert not torch.equal(seen[2], noise)
    assert "none: the velocity is zero" in str(run.plan)


@pytest.mark.parametrize("correction", CORRECTIONS, ids=str)
def test_captured_steps_equal_eager_ones_and_other_numbers_need_no_new_program(engine, correction):
    rule = SGG(CFG(3.0), SkipLayer(2.0, (1, 3)), 0.5) + correction
    expected = draw(engine, rule)
    plan = engine.plan(rule, steps=6)
    program, captured = engine.load(plan, LABELS, SEEDS, engine.draw_noise(plan, SEEDS)), []

    def capture(function):
        for _ in range(WARM_UP_STEPS):
            function()
        captured.append(function)
        return CapturedStep(function, 0)

    program.use_graphs(capture)
    for live in plan.live:
        program.advance(live)
    assert torch.equal(program.x, expected)
    count = len(captured)
    others = {"RescaledDeviation": Rescale(0.2), "OptimizedScale": CFGZeroStar(1), "AdaptiveProjection": APG(0.1, 9.0, 1.0)}
    other = SGG(CFG(2.0), SkipLayer(1.0, (1, 3)), 0.5) + others[type(correction.correction).__name__]
    plan = engine.plan(other, steps=6)
    engine.release(program)
    assert engine.load(plan, LABELS, SEEDS, engine.draw_noise(plan, SEEDS)) is program
    for live in plan.live:
        program.advance(live)
    assert len(captured) == count
    result = program.x.clone()
    program.graphs = None
    engine.release(program)
    assert torch.equal(draw(engine, other), result)


def test_a_foreign_loop_has_the_memory_of_a_run(engine):
    rule, sigmas = CFG(3.0) + APG(-0.5, 2.0, 0.3), (1.0, 0.75, 0.5, 0.25, 0.0)
    expected = engine.sample(LABELS, rule, schedule=sigmas, seeds=SEEDS)
    denoiser = engine.denoiser(rule, LABELS, schedule=sigmas)
    for _ in range(2):  # the second run forgets the first
        x = engine.draw_noise(expected.plan, SEEDS)
        for s, t in zip(sigmas, sigmas[1:], strict=False):
            x = x + (x - denoiser(x, torch.full((3,), s))) / s * (t - s)
        assert torch.allclose(x, expected.latents, **CLOSE)
    with pytest.raises(ValueError, match=r"AdaptiveProjection .* needs the schedule"):
        engine.denoiser(rule, LABELS)


REFUSED = {
    "two": (lambda: CFG(2.0) + Rescale(0.5) + CFGZeroStar(), "one correction, got RescaledDeviation"),
    "phi": (lambda: Rescale(1.5), "phi must lie between 0 and 1, got 1.5"),
    "steps": (lambda: CFGZeroStar(-1), "got -1"),
    "half a step": (lambda: CFGZeroStar(0.5), "whole number, got 0.5"),
    "radius": (lambda: APG(0.0, math.nan, 1.0), "radius must lie between 0 and inf, got nan"),
    "no term": (lambda: EarlyExit(1.0, 2) + CFGZeroStar(), "one term with another condition, and the rule has 0"),
    "two terms": (lambda: CFG(2.0) + CFG(2.0, condition="parent") + APG(0.0, 1.0, 1.0), "and the rule has 2"),
    "two in a batch": (
        lambda: [CFG(2.0) + APG(0.0, 1.0, 1.0), CFG(2.0, condition="parent") + APG(0.0, 1.0, 1.0)],
        "one term with another condition, and the rules of the batch have 2",
    ),
    "reused": (lambda: CFG(2.0).reused(2) + APG(0.0, 1.0, 1.0), "needs uncond at every call"),
    "channels": (lambda: CFG(2.0, channels=3) + CFGZeroStar(), "reduces over all latent channels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(engine, case):
    make, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        engine.plan(make(), steps=4)


def test_the_fit_is_for_velocities():
    noisy = Engine(tiny_sit(prediction="epsilon", time="discrete", out_channels=8), device="cpu")
    with pytest.raises(ValueError, match="acts on velocities, and tiny predicts noise"):
        noisy.plan(CFG(2.0) + CFGZeroStar(), steps=4)
    with pytest.raises(ValueError, match="acts on velocities, and tiny predicts those of the cosine path"):
        Engine(tiny_sit(path="cosine"), device="cpu").plan(CFG(2.0) + CFGZeroStar(), steps=4)
    latents = noisy.sample(LABELS, CFG(3.0, window=Window.steps(1, 2)) + Rescale(0.5), steps=4, seeds=SEEDS).latents
    assert torch.isfinite(latents).all()
