"""Rules that must be equal are equal, bit for bit; the published recipe costs what the design says."""

import math

import numpy as np
import pytest
import torch
from tiny_models import tiny_sit

from segue import CFG, SGG, EarlyExit, Engine, PerturbedLayers, SkipLayer, Unguided, Window, flow_shift

LABELS, SEEDS = [0, 3, 5], [7, 8, 9]
# a row of a batched product may be summed in another order than the same row alone; one call differs by a few ulp
BATCH_ERROR = 1e-5


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(depth=12, exits=(4,)), device="cpu")


def draw(engine, guidance, **options):
    options = {"steps": 6, "seeds": SEEDS} | options
    return engine.sample(LABELS, guidance, **options).latents


@pytest.mark.parametrize(
    ("rule", "same"),
    [
        (CFG(1.0), Unguided()),
        (SkipLayer(0.0, (3, 4)), Unguided()),
        (SkipLayer(1.5, ()), Unguided()),
        (EarlyExit(0.0, 4), Unguided()),
        (CFG(3.0, window=Window.sigma(0.0, 1.0)), CFG(3.0)),
        (CFG(3.0, window=Window.fraction(0.0, 1.0)), CFG(3.0)),
        (CFG(3.0, window=Window.steps(1, 6)), CFG(3.0)),
        (CFG(2.0) + CFG(2.0), CFG(3.0)),
        (CFG(lambda sigma: 3.0), CFG(3.0)),
        (
            SGG(CFG(3.0), SkipLayer(2.0, (7, 8)), 0.6),
            CFG(3.0, window=Window.sigma(0.6, 1)) + SkipLayer(2.0, (7, 8), window=Window.sigma(0, 0.6)),
        ),
        (SkipLayer(2.0, (8, 7)), PerturbedLayers(2.0, (7, 8), kind="skip")),
    ],
    ids=lambda rule: str(len(rule.terms)),
)
def test_equal_rules_give_equal_samples(engine, rule, same):
    assert torch.equal(draw(engine, rule), draw(engine, same))


def test_a_rule_changes_the_sample(engine):
    """The identities above would also hold for an engine that ignores guidance."""
    plain = draw(engine, None)
    for rule in (CFG(3.0), SkipLayer(2.0, (7, 8)), EarlyExit(1.0, 4), PerturbedLayers(1.0, (3,), kind="attention_blur")):
        assert (draw(engine, rule) - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    "rule", [SGG(CFG(3.0), SkipLayer(2.0, (7, 8)), 0.6), CFG(2.0) + EarlyExit(1.0, 4)], ids=["sgg", "cfg+exit"]
)
@pytest.mark.parametrize("solver", ["euler", "euler-maruyama"])
def test_a_seed_gives_the_same_sample_alone_and_in_any_batch(engine, rule, solver):
    together = draw(engine, rule, solver=solver)
    for i, (label, seed) in enumerate(zip(LABELS, SEEDS, strict=True)):
        alone = engine.sample([label], rule, steps=6, seeds=[seed], solver=solver).latents[0]
        assert (alone - together[i]).abs().max() <= BATCH_ERROR * together[i].abs().max()
    split = draw(engine, rule, solver=solver, max_batch=2)
    assert (split - together).abs().max() <= BATCH_ERROR * together.abs().max()


def test_the_published_recipe_runs_two_rows_then_one_and_a_suffix():
    """28 steps at shift 3: CFG on steps 1-14, blocks 7, 8, 9 of 24 skipped on 15-28 (SGG, arXiv 2603.20584)."""
    engine = Engine(tiny_sit(depth=24, exits=()), device="cpu")
    rule = CFG(4.5, window=Window.steps(1, 14)) + SkipLayer(3.0, (7, 8, 9), window=Window.steps(15, 28))
    plan = engine.plan(rule, schedule=flow_shift(28, 3.0))
    assert plan.live == ((0, 1),) * 14 + ((0, 2),) * 14
    assert plan.cost.calls == 28
    assert plan.cost.blocks == 14 * 2 * 24 + 14 * (24 + 24 - 10)
    rows, blocks = [], engine.models["main"].blocks
    handles = [block.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0].shape[0])) for block in blocks]
    engine.sample([1, 2], rule, schedule=flow_shift(28, 3.0), seeds=0)
    for handle in handles:
        handle.remove()
    # two samples: two rows each, then one row each up to and through the skipped blocks and two after them
    assert rows == [4] * 24 * 14 + ([2] * 10 + [4] * 14) * 14
    assert not plan.warnings
    switch = plan.sigmas[14]
    assert math.isclose(switch, 0.75, abs_tol=0.01)  # at 14 of 28 steps, shift 3 stands at 3 t / (1 + 2 t) with t = 1/2
    by_sigma = engine.plan(SGG(CFG(4.5), SkipLayer(3.0, (7, 8, 9)), switch=float(switch)), schedule=flow_shift(28, 3.0))
    assert np.array_equal(by_sigma.weights, plan.weights)


def test_reusing_a_program_for_another_run_changes_nothing(engine):
    """Prompt, seeds, scales, switch, sigmas and step count are data: no rebuild, and no trace of the run before."""
    first = draw(engine, SGG(CFG(3.0), SkipLayer(2.0, (7, 8)), 0.6))
    programs = set(engine._programs)
    engine.sample([5, 1, 2], SGG(CFG(1.7), SkipLayer(0.4, (7, 8)), 0.3), steps=19, seeds=3, schedule="shift=2")
    assert set(engine._programs) == programs
    assert torch.equal(draw(engine, SGG(CFG(3.0), SkipLayer(2.0, (7, 8)), 0.6)), first)
