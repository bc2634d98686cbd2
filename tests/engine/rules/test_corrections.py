"""Corrections of a rule: each against the naive sampler, their limits, what they refuse, and capture."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from correction_texts import ON_CFG, PLAIN
from naive_draws import waving_classifier
from naive_sampler import NaiveSampler
from recorded_captures import Recorder
from tiny_models import tiny_sit

from segue import (
    ADG,
    APG,
    CFG,
    FBG,
    FDG,
    GFCG,
    MAMBO,
    SGG,
    TCFG,
    TSR,
    BetaCFG,
    CFGZeroStar,
    EarlyExit,
    EnergyPreserving,
    Engine,
    EpsilonScaling,
    FreSca,
    Guidance,
    HiGS,
    PerpNeg,
    PowerLawCFG,
    Renorm,
    Rescale,
    SkipLayer,
    SpectralRefine,
    Window,
    parse_rule,
)
from segue.engine.rules.correction import CallLevels
from segue.engine.rules.rule_names import NAMES

LABELS, SEEDS = [0, 3, 5], [7, 8, 9]
# each with other numbers of the same kind
CORRECTIONS = {
    "rescale": (Rescale(0.7), Rescale(0.2)),
    "zero-star": (CFGZeroStar(1), CFGZeroStar(1)),
    "apg": (APG(-0.5, 2.0, 0.3), APG(0.1, 9.0, 1.0)),
    "tcfg": (TCFG(), TCFG()),
    "mambo": (MAMBO(8.0), MAMBO(2.0)),
    "power-law": (PowerLawCFG(0.5), PowerLawCFG(-0.2)),
    "beta": (BetaCFG(2.0, 3.0, 1.0), BetaCFG(1.0, 2.0, 0.5)),
    "adg": (ADG(1.0), ADG(0.5)),
    "fdg": (FDG(0.4, 3), FDG(0.8, 3)),
    "fresca": (FreSca(0.5, 1.5, 0.3), FreSca(1.0, 1.2, 0.8)),
    "fbg": (FBG(0.9, 0.4, 0.5, 4.0), FBG(0.8, 0.5, 0.6, 8.0)),
    "renorm": (Renorm(1.0), Renorm(1.1)),
    "energy": (EnergyPreserving(1.0), EnergyPreserving(0.3)),
    "refine": (SpectralRefine(0.4, 0.3, 0.8), SpectralRefine(0.1, 0.5, 0.6)),
    "higs": (HiGS(1.5, 0.5, 0.1, 0.9, 0.5, 0.1), HiGS(0.5, 0.75, 0.2, 0.95, 1.0, 0.3)),
    "tsr": (TSR(0.9, 1.5), TSR(1.05, 2.0)),
    "epsilon": (EpsilonScaling(1.02), EpsilonScaling(0.98)),
    "chain": (
        FDG(0.4, 2) + MAMBO(2.0) + BetaCFG(2.0, 2.0, 0.3) + APG(-0.5, 2.0, 0.3) + ADG(0.6),
        FDG(0.8, 2) + MAMBO(4.0) + BetaCFG(1.0, 2.0, 0.1) + APG(0.3, 1.0, 0.0) + ADG(0.9),
    ),
    "four": (
        FreSca(0.5, 1.5, 0.3) + TCFG() + Rescale(0.5) + HiGS(1.0, low=0.1),
        FreSca(0.9, 1.1, 0.5) + TCFG() + Rescale(0.1) + HiGS(0.2, low=0.3),
    ),
}
CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # branches are combined after the projection instead of before it


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(), device="cpu")


def draw_run(engine, rule, **options):
    return engine.sample(LABELS, rule, steps=6, seeds=SEEDS, **options)


def draw(engine, rule, **options):
    return draw_run(engine, rule, **options).latents


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("which", (0, 1))
def test_a_correction_equals_that_of_the_naive_sampler(engine, name, which):
    """Also after steps in which the rule is silent, whose states hold no estimate to remember."""
    double = {"main": copy.deepcopy(engine.models["main"]).double()}
    corrections = CORRECTIONS[name][which].corrections
    silent = () if name == "zero-star" else CFGZeroStar(2).corrections
    for chosen in (corrections, silent + corrections):
        rule = CFG(2.5) + Guidance(corrections=tuple(sorted(chosen, key=lambda correction: correction.place)))
        plan = engine.plan(rule, steps=6)
        noise = engine.draw_noise(plan, SEEDS)
        found = engine.sample(LABELS, rule, steps=6, noise=noise).latents
        expected = NaiveSampler(double, rule, torch.tensor(LABELS), list(plan.schedule.sigmas)).run("euler", noise, None)
        plain = engine.sample(LABELS, CFG(2.5), steps=6, noise=noise).latents
        size = expected.abs().max()
        assert (found - expected).abs().max() < 2e-5 * size
        assert (plain - expected).abs().max() > 1e-3 * size, "the correction does something"


@pytest.mark.parametrize("weak", ["slg:weight=0.7,layers=1,3", "exit:weight=0.5,layer=2"], ids=["slg", "exit"])
@pytest.mark.parametrize("name", ON_CFG)
def test_a_weak_branch_beside_a_correction_equals_that_of_the_naive_sampler(engine, name, weak):
    """What a correction of the reference makes of its direction leaves the other terms as they are."""
    double = {"main": copy.deepcopy(engine.models["main"]).double()}
    correction = f"{name}:{ON_CFG[name]}" if ON_CFG[name] else name
    rule, alone = (parse_rule(" + ".join(terms)).guidance for terms in ((PLAIN, weak, correction), (PLAIN, correction)))
    plan = engine.plan(rule, steps=6)
    noise = engine.draw_noise(plan, SEEDS)
    found, without = (engine.sample(LABELS, own, steps=6, noise=noise).latents for own in (rule, alone))
    expected = NaiveSampler(double, rule, torch.tensor(LABELS), list(plan.schedule.sigmas)).run("euler", noise, None)
    size = expected.abs().max()
    assert (found - expected).abs().max() < 2e-5 * size
    assert (without - expected).abs().max() > 1e-3 * size, "the weak branch does something"


def test_no_correction_is_left_out():
    several = {"four", "chain"}
    assert CORRECTIONS.keys() - several == ON_CFG.keys() == {name for name in NAMES if NAMES[name].correction} - {"perp-neg"}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_step_of_two_calls_is_that_of_the_naive_sampler(engine, name):
    double = {"main": copy.deepcopy(engine.models["main"]).double()}
    rule = CFG(2.5) + CORRECTIONS[name][0]
    plan = engine.plan(rule, steps=6, solver="heun")
    noise = engine.draw_noise(plan, SEEDS)
    found = engine.sample(LABELS, rule, steps=6, solver="heun", noise=noise).latents
    expected = NaiveSampler(double, rule, torch.tensor(LABELS), list(plan.schedule.sigmas)).run("heun", noise, None)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("scaled", [TSR(0.9, 3.0), EpsilonScaling(1.02)], ids=["tsr", "epsilon"])
def test_a_step_without_a_velocity_has_none_to_scale(engine, scaled):
    seen = []
    rule = CFG(3.0) + CFGZeroStar(zero_steps=3) + scaled
    run = engine.sample(LABELS, rule, steps=7, seeds=SEEDS, callback=lambda info: seen.append(info.x.clone()))
    assert torch.equal(seen[2], engine.draw_noise(run.plan, SEEDS)) and not torch.equal(seen[3], seen[2])


@pytest.mark.parametrize(("pi", "most"), [(0.5, 1.1), (0.95, 1.01), (0.95, 10.0)])
def test_the_scale_of_feedback_is_never_above_the_most(engine, pi, most):
    """Nor at the first call, where the posterior is 1 and ``1 / pi`` would be the scale."""
    rules = CFG(3.0) + FBG(pi=pi, most=most), CFG(min(most, 1 / pi))
    first, plain = (engine.sample(LABELS, rule, steps=1, seeds=SEEDS).latents for rule in rules)
    assert torch.allclose(first, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", ["cond", "uncond", "weak"])
def test_what_a_classifier_looks_at_is_no_term_to_correct(source):
    """Neither is it one too many, nor one in a term's place."""
    engine = Engine(tiny_sit(), {"weak": tiny_sit(8)}, device="cpu")
    swap = GFCG(1.0, classifier=waving_classifier(), form="ag-swap", source=source)
    for correction in (APG(0.0, 1.0, 0.5), PerpNeg()):
        with pytest.raises(ValueError, match=r"has 0|has none"):
            engine.plan(swap + correction, steps=4)
    beside = engine.plan(CFG(2.0, condition="parent") + swap + APG(0.0, 1.0, 0.5), steps=4)
    assert beside.branches[beside.reference].condition == "parent"


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_scale_of_one_is_unguided_to_the_bit(engine, name):
    """A correction corrects what terms add: nothing, where they weigh nothing; one that may stand alone by its own weight."""
    rule = CORRECTIONS[name][0]
    kept = (type(correction).neutral() if correction.alone else correction for correction in rule.corrections)
    rule = CFG(1.0) + Guidance(corrections=tuple(kept))
    rule = CFG(1.0) + CFGZeroStar() if name == "zero-star" else rule
    assert torch.equal(draw(engine, rule), draw(engine, None))


def test_several_corrections_cost_one_look_at_the_predictions_and_one_result(engine):
    """However many follow one another: one pass for the sums, one that writes, and a call evaluates what the terms do."""
    counted = []
    kernels = engine.selection.kernels

    def counting(name):
        operation = getattr(kernels, name)

        def call(*arguments):
            counted.append((name, len(arguments)))
            return operation(*arguments)

        return call

    rule = CFG(3.0) + SkipLayer(0.5, (1,)) + CFGZeroStar() + APG(-0.5, 2.0, 0.3) + TCFG() + Renorm(1.0) + Rescale(0.7)
    engine.selection = replace(engine.selection, kernels=replace(kernels, **{name: counting(name) for name in GRAM}))
    try:
        run = draw_run(engine, rule)
    finally:
        engine.selection = replace(engine.selection, kernels=kernels)
        engine._programs.clear()
    # the conditional and the other prediction, what the skipped layers add, the sample, the average
    assert counted == [("moments", 1 + 5), ("linear_combination", 2 + 5)] * 6
    assert run.plan.cost.evaluations == engine.plan(CFG(3.0) + SkipLayer(0.5, (1,)), steps=6).cost.evaluations


GRAM = ("moments", "linear_combination")


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


@pytest.mark.parametrize("name", CORRECTIONS)
def test_captured_steps_equal_eager_ones_and_other_numbers_need_no_new_program(engine, name):
    correction, others = CORRECTIONS[name]
    rule = SGG(CFG(3.0), SkipLayer(2.0, (1, 3)), 0.5) + correction
    expected = draw(engine, rule)
    plan = engine.plan(rule, steps=6)
    program, recorder = engine.load(plan, LABELS, SEEDS, engine.draw_noise(plan, SEEDS)), Recorder()
    program.use_graphs(recorder)
    for live in plan.live:
        program.advance(live)
    assert torch.equal(program.x, expected)
    count = recorder.captures
    other = SGG(CFG(2.0), SkipLayer(1.0, (1, 3)), 0.5) + others
    plan = engine.plan(other, steps=6)
    engine.release(program)
    assert engine.load(plan, LABELS, SEEDS, engine.draw_noise(plan, SEEDS)) is program
    for live in plan.live:
        program.advance(live)
    assert recorder.captures == count
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
    "order": (lambda: CFG(2.0) + Rescale(0.5) + CFGZeroStar(), "add zero-star before rescale"),
    "frequencies last": (lambda: CFG(2.0) + ADG() + FDG(0.5), "add fdg before adg"),
    "history first": (lambda: CFG(2.0) + HiGS(1.0) + Renorm(), "add renorm before higs"),
    "twice": (lambda: CFG(2.0) + Rescale(0.5) + Rescale(0.7), "a correction once, got RescaledDeviation"),
    "frequencies twice": (lambda: CFG(2.0) + FDG(0.5) + FreSca(), "cuts the frequencies of a direction once"),
    "rho": (lambda: Renorm(0.5), "rho must lie between 1 and inf, got 0.5"),
    "levels": (lambda: FDG(0.5, 1), "levels must lie between 2 and 8, got 1"),
    "pi": (lambda: FBG(1.0), "pi must lie between 0.5 and 1, below 1, got 1.0"),
    "a": (lambda: BetaCFG(0.5), "a must lie between 1 and 1e.06, got 0.5"),
    "not a correction": (lambda: Guidance(corrections=(1,)), "a correction is made by functions such as"),
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


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 3.5), (2, 1), (2, 3.5), (600, 3.5), (1, 600), (600, 600), (1e6, 1e6)])
def test_the_density_of_beta_adds_up_to_one_whatever_its_numbers(a, b):
    """And is finite at both ends; of small numbers it is the formula."""
    count = 200_001
    levels = CallLevels(np.zeros(count), np.zeros(count), np.arange(count), count)
    density = BetaCFG(a, b, 0.0).corrections[0].numbers(levels)["density"]
    assert np.isfinite(density).all() and np.trapezoid(density, dx=1 / (count - 1)) == pytest.approx(1, rel=1e-3)
    if max(a, b) < 10:
        p = levels.position
        direct = p ** (a - 1) * (1 - p) ** (b - 1) / (math.gamma(a) * math.gamma(b) / math.gamma(a + b))
        assert np.allclose(density, direct, rtol=1e-12)


def test_feedback_is_for_levels_that_fall(engine):
    with pytest.raises(ValueError, match=r"is for noise levels that fall, and those of this run rise from 0\.1 to 0\.3"):
        engine.plan(CFG(2.0) + FBG(), schedule=(0.1, 0.3, 0.7))


def test_the_fit_is_for_velocities():
    noisy = Engine(tiny_sit(prediction="epsilon", time="discrete", out_channels=8), device="cpu")
    with pytest.raises(ValueError, match="acts on velocities, and tiny predicts noise"):
        noisy.plan(CFG(2.0) + CFGZeroStar(), steps=4)
    with pytest.raises(ValueError, match="acts on velocities, and tiny predicts those of the cosine path"):
        Engine(tiny_sit(path="cosine"), device="cpu").plan(CFG(2.0) + CFGZeroStar(), steps=4)
    latents = noisy.sample(LABELS, CFG(3.0, window=Window.steps(1, 2)) + Rescale(0.5), steps=4, seeds=SEEDS).latents
    assert torch.isfinite(latents).all()


def test_perpendicular_negatives_are_the_published_ones(engine):
    """``u + s (D - v perp(n - u))`` at one call, written as its paper does."""
    s, v, negative, levels = 3.0, 0.7, 4, [0.7, 0.3]
    rule = CFG(s) + CFG(1 + s * v, condition=negative) + PerpNeg()
    noise = engine.draw_noise(engine.plan(rule, schedule=levels), SEEDS)

    def velocity(own, rule=None):
        """That of the one Euler step."""
        return (noise - engine.sample(own, rule, schedule=levels, noise=noise).latents).double() / (levels[0] - levels[1])

    c, u, n = velocity(LABELS), velocity(LABELS, CFG(0.0)), velocity([negative] * 3)
    positive, other = c - u, n - u
    share = (other * positive).sum((1, 2, 3)) / (positive * positive).sum((1, 2, 3))
    expected = u + s * (positive - v * (other - share[:, None, None, None] * positive))
    assert (velocity(LABELS, rule) - expected).abs().max() < 2e-5 * expected.abs().max()


def test_perpendicular_negatives_need_the_term_that_they_are_perpendicular_to(engine):
    with pytest.raises(ValueError, match="Perpendicular is about the term of uncond, and the rule has none"):
        engine.plan(CFG(2.0, condition=3) + PerpNeg())
