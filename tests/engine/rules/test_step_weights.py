"""Weights of both levels of a step: CFG++ as its paper steps, and functions of two levels."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_sit

from segue import CFG, TSR, CFGPlusPlus, Engine, EpsilonScaling
from segue.engine.rules.presets import parse_rule
from segue.engine.rules.rule_text import rule_text

LABELS, SEEDS = [0, 3, 5], [7, 8, 9]


@pytest.fixture(
    scope="module", params=[{}, {"prediction": "epsilon", "time": "discrete", "out_channels": 8}], ids=["flow", "dit"]
)
def engine(request):
    return Engine(tiny_sit(**request.param), device="cpu")


@pytest.mark.parametrize("share", [0.2, 0.8, 1.0])
def test_cfg_plus_plus_guides_the_estimate_and_takes_the_noise_of_the_reference(engine, share):
    """x' = (1 - t') x0 + t' eps with x0 of the guided velocity and eps of the unconditional one, as the paper has it."""
    run = engine.sample(LABELS, CFGPlusPlus(share), steps=5, seeds=SEEDS)
    levels = [*run.plan.sigmas, run.plan.last_sigma]
    conditional = engine.denoiser(None, LABELS, schedule=levels)
    reference = engine.denoiser(CFG(0.0), LABELS, schedule=levels)
    x = engine.noised_start(run.plan, engine.draw_noise(run.plan, SEEDS), torch.zeros(3, 4, 6, 10))
    for sigma, after in zip(levels, levels[1:], strict=False):
        level = torch.full((3,), sigma)
        c, u = conditional(x, level), reference(x, level)
        noise = (x - (1 - sigma) * u) / sigma
        x = (1 - after) * (u + share * (c - u)) + after * noise
    assert (run.latents - x).abs().max() < 5e-5 * x.abs().max()  # roundings of two velocities, and of their differences


def test_the_weight_is_the_formula_of_both_levels(engine):
    plan = engine.plan(CFGPlusPlus(0.6), steps=7)
    levels = np.array([*plan.sigmas, plan.last_sigma])
    wanted = 0.6 * levels[:-1] * (1 - levels[1:]) / (levels[:-1] - levels[1:]) - 1
    assert np.allclose(plan.weights[:, 0], wanted, rtol=1e-12)
    same = engine.plan(CFG(lambda sigma, after: 0.6 * sigma * (1 - after) / (sigma - after)), steps=7)
    assert np.array_equal(same.weights, plan.weights)


@pytest.mark.parametrize("wrong", [None, "3", True])
def test_a_function_of_both_levels_returns_a_number(engine, wrong):
    with pytest.raises(TypeError, match="a function of sigma and next_sigma must return a number, got"):
        engine.plan(CFG(lambda sigma, next_sigma: wrong), steps=2)


def test_its_text_makes_it_again():
    rule = CFGPlusPlus(0.6, condition="parent")
    assert rule_text(rule) == "cfgpp:scale=0.6,reference=parent"
    for own in (rule, rule.adaptive(0.99), rule.reused(2, order=1), rule.reused(calls=[1, 4])):
        assert parse_rule(rule_text(own)).guidance == own


def test_a_step_of_no_length_is_unguided(engine):
    plan = engine.plan(CFGPlusPlus(0.6), schedule=[1.0, 0.5, 0.5, 0.0])
    assert (plan.weights[:, 0] == 0).tolist() == [False, True, False]


def test_a_weight_of_two_levels_needs_the_schedule(engine):
    with pytest.raises(ValueError, match="a function of two levels, needs the schedule"):
        engine.denoiser(CFGPlusPlus(0.6), LABELS)
    with pytest.raises(ValueError, match=r"between 0 and 10, above 0, got 0"):
        CFGPlusPlus(0)


@pytest.mark.parametrize("scaling", [TSR(1.0, 3.0), EpsilonScaling(1.0)], ids=str)
def test_neutral_scaling_is_unguided_to_the_bit_and_costs_nothing(engine, scaling):
    plain, scaled = (engine.sample(LABELS, rule, steps=5, seeds=SEEDS) for rule in (None, scaling))
    assert torch.equal(plain.latents, scaled.latents)
    assert scaled.plan.cost == plain.plan.cost and scaled.plan.live_sets == plain.plan.live_sets


def test_scaling_takes_no_branch_apart(engine):
    """It is in the solver's row: branches still combine before the last projection."""
    rule = CFG(2.0) + TSR(0.9)
    assert engine.plan(rule, steps=4).combines_early((0, 1))
    assert not torch.equal(*(engine.sample(LABELS, one, steps=4, seeds=SEEDS).latents for one in (rule, CFG(2.0))))
