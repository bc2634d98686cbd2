"""Reused guidance directions.  That the numbers and the counted work are those of the plan, the random-plan oracle shows."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_sit

from segue import CFG, SGG, Engine, SkipLayer, Window
from segue.engine.running.graph import WARM_UP_STEPS, CapturedStep

LABELS, SEEDS = [0, 3, 5], [7, 8, 9]
RULE = SGG(CFG(3.0), SkipLayer(2.0, (1, 3)), 0.5)


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(), device="cpu")


@pytest.mark.parametrize(("refresh", "guided"), [(1, 28), (2, 14), (3, 10), (28, 2)])
def test_the_plan_says_which_calls_evaluate_the_weak_branch(engine, refresh, guided):
    plan = engine.plan(RULE.reused(refresh), steps=28)
    assert plan.cost.evaluations == 28 + guided
    assert np.array_equal(plan.weights, engine.plan(RULE, steps=28).weights)
    evaluated = [call for call, live in enumerate(plan.live) if len(live) > 1]
    assert evaluated == [*range(0, 14, refresh), *range(14, 28, refresh)]


def test_a_direction_is_not_carried_over_a_pause(engine):
    rule = CFG(2.0, window=Window.steps(1, 2)) + CFG(2.0, window=Window.steps(5, 6))
    assert [len(live) for live in engine.plan(rule.reused(4), steps=6).live] == [2, 1, 1, 1, 2, 1]


def test_the_error_is_that_of_the_old_direction(engine):
    """With the weight at one call only nothing is reused; with more calls the result differs, the more the older it is."""
    exact = engine.sample(LABELS, RULE, steps=28, seeds=SEEDS).latents
    errors = [(engine.sample(LABELS, RULE.reused(n), steps=28, seeds=SEEDS).latents - exact).norm() for n in (1, 2, 7)]
    assert errors[0] == 0
    assert 0 < errors[1] < errors[2]
    once = CFG(3.0, window=Window.steps(2, 2))
    alone, reused = (engine.sample(LABELS, rule, steps=4, seeds=SEEDS).latents for rule in (once, once.reused(3)))
    assert torch.allclose(alone, reused, rtol=1e-5, atol=1e-6)  # combined after the projection instead of before it


def test_a_new_run_does_not_see_the_directions_of_the_last(engine):
    rule = RULE.reused(3)
    first = engine.sample(LABELS, rule, steps=6, seeds=SEEDS).latents
    engine.sample(LABELS, rule, steps=6, seeds=SEEDS, noise=torch.full((3, 4, 6, 10), torch.nan))
    assert torch.equal(engine.sample(LABELS, rule, steps=6, seeds=SEEDS).latents, first)


def test_captured_steps_reuse_directions_too(engine):
    plan = engine.plan(RULE.reused(3), steps=10)
    noise = engine.draw_noise(plan, SEEDS)
    expected = engine.sample(LABELS, RULE.reused(3), steps=10, seeds=SEEDS).latents
    program, captured = engine.load(plan, LABELS, SEEDS, noise), []

    def capture(function):
        for _ in range(WARM_UP_STEPS):
            function()
        captured.append(function)
        return CapturedStep(function, 0)

    program.use_graphs(capture)
    for live in plan.live:
        program.advance(live)
    program.graphs = None
    assert len(captured) == len(plan.live_sets) == 3
    assert torch.equal(program.x, expected)


def test_a_foreign_loop_reuses_only_from_call_to_call(engine):
    rule, sigmas = CFG(3.0).reused(2), (1.0, 0.75, 0.5, 0.25, 0.0)
    plan = engine.plan(rule, schedule=sigmas)
    x = engine.draw_noise(plan, SEEDS)
    fresh = engine.denoiser(CFG(3.0), LABELS, schedule=sigmas)
    denoiser = engine.denoiser(rule, LABELS, schedule=sigmas)

    def both(sigma):
        levels = torch.full((3,), sigma)
        return denoiser(x, levels), fresh(x, levels)

    exact = [torch.allclose(*both(sigma), rtol=1e-4, atol=1e-5) for sigma in (1.0, 0.75, 0.5, 0.25)]
    assert exact == [True, False, True, False]
    assert torch.allclose(*both(0.75), rtol=1e-4, atol=1e-5)  # back in time: nothing to reuse
    with pytest.raises(ValueError, match="reuse of directions for 2 calls needs the schedule"):
        engine.denoiser(rule, LABELS)


@pytest.mark.parametrize(("refresh", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_refresh_that_is_no_count_is_refused(refresh, error):
    with pytest.raises(error, match=f"got {refresh}"):
        RULE.reused(refresh)


def test_two_terms_on_a_branch_must_agree(engine):
    rule = CFG(3.0).reused(2) + CFG(1.5, window=Window.sigma(0.0, 0.5)).reused(3)
    with pytest.raises(ValueError, match="refresh it every 2 and 3 calls"):
        engine.plan(rule)
