"""Random sums of drawn and plain terms against the naive sampler, and the work done against the work planned."""

import copy
import random

import numpy as np
import pytest
import torch
from counted_rows import counted_rows
from naive_draws import NaiveDraws, waving_classifier
from tiny_models import tiny_sit

from segue import CFG, GFCG, ICG, AutoGuidance, Engine, Guidance, SkipLayer, Window
from segue.engine.planning.schedule import Schedule
from segue.engine.running.draws import other_classes

CLASSES = 6
# fp32 against fp64, up to 16 calls: a choice's factor adds the rounding of its logits, a few times that of the outputs
ERROR = 2e-4
QUICK, CASES = 8, 120
CLASSIFIER = waving_classifier(CLASSES, seed=8)


@pytest.fixture(scope="module")
def pairs():
    """Engines of three parameterisations with a weak network each, and copies in fp64."""
    made = []
    for seed, changes in enumerate(
        (
            {},
            {"prediction": "data_velocity", "time": "data_time", "parents": ()},
            {"path": "cosine", "qk_norm": True, "height": 2, "width": 6},
        )
    ):
        main, weak = tiny_sit(seed, depth=3, **changes), tiny_sit(seed + 9, **(changes | {"depth": 1, "exits": ()}))
        engine = Engine(main, {"weak": weak}, device="cpu")
        made.append((engine, {name: copy.deepcopy(network).double() for name, network in engine.models.items()}))
    return made


def random_window(rng: random.Random, steps: int) -> Window:
    low, high = sorted(rng.sample(range(101), 2))
    first = rng.randint(1, steps)
    return rng.choice((Window(), Window.sigma(low / 100, high / 100), Window.steps(first, rng.randint(first, steps))))


def random_draw(rng: random.Random, steps: int, channels: int | None) -> Guidance:
    window = random_window(rng, steps)
    if rng.random() < 0.25:
        return ICG(round(rng.uniform(0.5, 2.5), 2), window=window, channels=channels)
    form = rng.choice(("rival", "cfg-swap", "ag-swap"))
    return GFCG(
        round(rng.uniform(0.2, 1.2), 2),
        classifier=CLASSIFIER,
        form=form,
        gain=rng.choice((0.0, 1.0)) if form == "ag-swap" else 0.0,
        lag=rng.choice((0, 1)),
        source=rng.choice(("cond", "weak", "uncond")),
        every=rng.choice((1, 1, 2, 3)),
        interval=random_window(rng, steps),
        temperature=rng.choice((1.0, 3.0)),
        delta=rng.choice((0.0, 0.1)),
        window=window,
    )


def random_plain(rng: random.Random, steps: int) -> Guidance:
    window = random_window(rng, steps)
    return rng.choice(
        (CFG(1.5, window=window), SkipLayer(0.7, (rng.randrange(3),), window=window), AutoGuidance(0.5, window=window))
    )


def check_case(pairs, case: int) -> None:
    rng = random.Random(case)
    engine, doubles = pairs[case % len(pairs)]
    steps, solver, batch = (
        rng.choice((1, 2, 3, 5, 8)),
        rng.choice(("euler", "heun", "ab2", "dpm++2m", "ddim")),
        rng.randint(1, 4),
    )
    channels = rng.choice((None, 2))  # of random references: two terms on one branch must agree
    drawn = sum((random_draw(rng, steps, channels) for _ in range(rng.randint(1, 2))), Guidance())
    plain = sum((random_plain(rng, steps) for _ in range(rng.randint(0, 2))), Guidance())
    sizes = np.array([rng.uniform(0.3, 1.0) for _ in range(steps)])
    schedule = Schedule((0.99, *(0.99 * (1 - sizes.cumsum() / sizes.sum()))[:-1].tolist(), 0.0))
    plan = engine.plan(drawn + plain, schedule=schedule, solver=solver)
    labels, seeds = [rng.randrange(CLASSES) for _ in range(batch)], [rng.randrange(2**40) for _ in range(batch)]
    spec = engine.spec
    noise = torch.randn(batch, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(case))
    with counted_rows() as rows:
        found = engine.sample(labels, drawn + plain, schedule=schedule, solver=solver, seeds=seeds, noise=noise).latents
    assert sum(rows) == batch * plan.cost.blocks
    others = [other_classes(seed, plan.calls, own, CLASSES).tolist() for seed, own in zip(seeds, labels, strict=True)]
    naive = NaiveDraws(
        doubles,
        plain,
        torch.tensor(labels),
        list(schedule.sigmas),
        drawn.terms,
        CLASSIFIER,
        tuple(plan.steps.tolist()),
        others,
    )
    expected = naive.run(solver, noise)
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
    assert error < ERROR, f"case {case}: {solver}, {steps} steps, batch {batch}, error {error:.2e}\n{plan}"


@pytest.mark.filterwarnings("ignore::segue.PlanWarning")
def test_random_rules_equal_the_naive_sampler(pairs):
    for case in range(QUICK):
        check_case(pairs, case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::segue.PlanWarning")
def test_many_more_do(pairs):
    for case in range(QUICK, CASES):
        check_case(pairs, case)
