"""Reused guidance directions.  That the numbers and the counted work are those of the plan, the random-plan oracle shows."""

import math

import numpy as np
import pytest
import torch
from recorded_captures import Recorder
from tiny_models import tiny_sit

from segue import CFG, GFCG, ICG, SGG, Engine, SkipLayer, Window, parse_rule
from segue.engine.planning.reuse import reuse_tables
from segue.engine.rules.rule_text import rule_text

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
    engine.sample(LABELS, rule, steps=6, seeds=SEEDS, noise=torch.full((3, 4, 6, 10), 3e38))  # leaves NaN everywhere
    assert torch.equal(engine.sample(LABELS, rule, steps=6, seeds=SEEDS).latents, first)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_captured_steps_reuse_directions_too(engine, order):
    rule = RULE.reused(3, order=order)
    plan = engine.plan(rule, steps=10)
    noise = engine.draw_noise(plan, SEEDS)
    expected = engine.sample(LABELS, rule, steps=10, seeds=SEEDS).latents
    program, recorder = engine.load(plan, LABELS, SEEDS, noise), Recorder()
    program.use_graphs(recorder)
    for live in plan.live:
        program.advance(live)
    program.graphs = None
    assert recorder.captures == len(plan.live_sets) == 3
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
    with pytest.raises(ValueError, match="the reuse of directions, computed every 2 calls, needs the schedule"):
        engine.denoiser(rule, LABELS)


def test_the_calls_that_compute_a_direction_may_be_listed(engine):
    """Those of the run, as plans count them; the first of each segment in any case, those without a weight never."""
    plan = engine.plan(RULE.reused(calls=(2, 5, 18, 19, 40)), steps=28)
    assert [call + 1 for call, live in enumerate(plan.live) if len(live) > 1] == [1, 2, 5, 15, 18, 19]
    assert any("the calls 40 that compute uncond come after the last one, 28" in text for text in plan.warnings)
    each = CFG(2.0).reused(calls=range(1, 7)) + SkipLayer(1.0, (1,)).reused(3, order=1)
    assert [len(live) for live in engine.plan(each, steps=6).live] == [3, 2, 2, 3, 2, 2]


def random_segments(rng, calls):
    """Levels that fall, rise or stand, weights with pauses, and calls that are evaluated, of one branch."""
    sigmas = np.round(rng.uniform(0.05, 1.0, calls), 1 if rng.random() < 0.5 else 6)
    weights = rng.uniform(0.5, 2.0, (calls, 1)) * (rng.random((calls, 1)) < 0.9)
    evaluated = (weights != 0) & (rng.random((calls, 1)) < 0.4)
    for call in range(calls):
        evaluated[call] |= bool(weights[call]) and (call == 0 or not weights[call - 1])
    return sigmas, weights, evaluated


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_coefficients_are_those_of_the_polynomial_through_the_last_directions(order, seed):
    """Monomials solved in fp64 instead of Lagrange's form; more places than the order needs change nothing."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        calls = int(rng.integers(1, 24))
        sigmas, weights, evaluated = random_segments(rng, calls)
        places = order + 1 + int(rng.integers(0, 3))
        tables = reuse_tables(weights, evaluated, sigmas, (order,), places)
        memory, kept = np.full((places, calls), np.nan), []  # what lies in each place: the direction of one call, one-hot
        for call in range(calls):
            kept = kept if weights[call, 0] else []
            if evaluated[call, 0]:
                kept.append(call)
                memory[tables.place[call, 0]] = np.eye(calls)[call]
            used = tables.coefficients[call, 0]
            if not weights[call, 0] or evaluated[call, 0]:
                assert not used.any()
                continue
            nodes = sorted({sigmas[node]: node for node in kept[-order - 1 :]}.values())
            powers = np.vander(sigmas[nodes], increasing=True)
            expected = np.linalg.solve(powers.T, sigmas[call] ** np.arange(len(nodes)))
            found = used[used != 0] @ memory[used != 0]
            # errors of the solve grow with the condition number of up to four powers at levels .1 apart, about 1e5
            np.testing.assert_allclose(found[nodes], expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
            assert np.isclose(used.sum(), 1.0) and tables.oldest[call, 0] == nodes[0]
            assert tables.place[call, 0] == tables.place[kept[-1], 0]


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_the_coefficients_of_a_plan_on_a_random_schedule_are_lagranges(engine, order, seed):
    """Read from the plan's own table, against products of differences in fp64."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        steps = int(rng.integers(order + 2, 16))
        sigmas = (1.0, *np.sort(rng.uniform(0.02, 0.98, steps - 1))[::-1].tolist(), 0.0)
        calls = tuple(sorted({1, *(rng.choice(steps, size=steps // 2, replace=False) + 1).tolist()}))
        reuse = engine.plan(CFG(3.0).reused(calls=calls, order=order), schedule=sigmas).reuse
        place, kept = {}, []  # of a call's direction, while it is there; the calls behind, latest last
        for call in range(steps):
            if call + 1 in calls:
                place = {at: node for at, node in place.items() if at != reuse.place[call, 0]} | {reuse.place[call, 0]: call}
                kept = [*kept, call][-order - 1 :]
                continue
            expected = {
                node: math.prod((sigmas[call] - sigmas[o]) / (sigmas[node] - sigmas[o]) for o in kept if o != node)
                for node in kept
            }
            found = {place[at]: value for at, value in enumerate(reuse.coefficients[call, 0]) if value}
            assert found == pytest.approx({node: value for node, value in expected.items() if value}, rel=1e-9)


def test_a_direction_that_is_a_line_in_the_level_is_reused_without_error(seed):
    """Also one that lies on a parabola by order 2: what a polynomial is exact for."""
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.uniform(0.01, 1.0, 12))[::-1]
    weights, evaluated = np.ones((12, 1)), np.isin(np.arange(12), (0, 1, 3, 7))[:, None]
    for order in (1, 2):
        polynomial = np.polynomial.Polynomial(rng.normal(size=order + 1))
        tables, places = reuse_tables(weights, evaluated, levels, (order,), order + 1), np.zeros(order + 1)
        for call, level in enumerate(levels):
            if evaluated[call]:
                places[tables.place[call, 0]] = polynomial(level)
            elif evaluated[:call].sum() > order:  # as many directions lie behind it as the polynomial has coefficients
                assert np.isclose(tables.coefficients[call, 0] @ places, polynomial(level))


def test_a_sample_that_jumps_holds_until_its_line_has_two_points(engine):
    """In a foreign loop: from call 2 (computed for it alone) on, though the others' table has calls 1 and 3 behind it."""
    sigmas = (1.0, 0.9, 0.7, 0.5, 0.45, 0.2, 0.1, 0.0)
    rule = CFG(3.0).reused(calls=(1, 3, 5), order=1)
    x = engine.draw_noise(engine.plan(rule, schedule=sigmas), SEEDS)
    exact, line = (engine.denoiser(own, LABELS, schedule=sigmas) for own in (CFG(3.0), rule))
    held = engine.denoiser(CFG(3.0).reused(calls=(2, 3)), LABELS, schedule=sigmas)

    def at(denoiser, call):
        return denoiser(x, torch.full((3,), sigmas[call - 1]))

    close = {"rtol": 1e-4, "atol": 1e-5}
    assert torch.allclose(at(line, 2), at(exact, 2), **close)  # begins there
    assert torch.allclose(at(line, 3), at(exact, 3), **close)
    assert torch.allclose(at(line, 3), at(exact, 3), **close)  # another stage of the step: the same place again
    at(held, 3)
    assert torch.allclose(at(line, 4), at(held, 4), **close)  # call 2 is no point of the table: one of two
    at(line, 5)
    run = engine.denoiser(rule, LABELS, schedule=sigmas)
    before = [at(run, call) for call in range(1, 7)]
    assert torch.allclose(at(line, 6), before[5], **close)  # calls 3 and 5
    assert not torch.allclose(before[3], at(held, 4), **close)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must lie between 0 and 3, got 4"),
        ({"order": -1}, "order must lie between 0 and 3, got -1"),
        ({"calls": ()}, "calls must name at least one call, got none"),
        ({"calls": (0, 1)}, "calls are counted from 1, got 0"),
        ({"calls": (1, 4, 4)}, "calls must be distinct, got 4 twice"),
        ({"calls": (1, 2), "refresh": 2}, "and so does refresh 2: give one of them"),
    ],
)
def test_orders_and_calls_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RULE.reused(**options)
    for wrong in ("1,2", 3, (1.5,), (True,)):
        with pytest.raises(TypeError, match="calls must be whole numbers, counted from 1"):
            RULE.reused(calls=wrong)
    with pytest.raises(TypeError, match=r"order must be a whole number, got 1\.5"):
        RULE.reused(2, order=1.5)


@pytest.mark.parametrize(("refresh", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_refresh_that_is_no_count_is_refused(refresh, error):
    with pytest.raises(error, match=f"got {refresh}"):
        RULE.reused(refresh)


def test_an_order_without_calls_between_is_none():
    """So a sweep may begin at ``refresh=1``, and what it draws has a text."""
    for rule in (ICG(2.0), GFCG(1.0, classifier="herbarium-classifier", form="ag-swap"), CFG(2.0)):
        assert rule.reused(1, order=1) == rule and parse_rule(rule_text(rule.reused(1, order=1))).guidance == rule


def test_two_terms_on_a_branch_must_agree(engine):
    rule = CFG(3.0).reused(2) + CFG(1.5, window=Window.sigma(0.0, 0.5)).reused(3)
    with pytest.raises(ValueError, match="refresh it every 2 calls and every 3 calls"):
        engine.plan(rule)
