"""Random sums of drawn and plain terms, corrected, against the naive sampler, and the work done against the work planned."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from counted_rows import counted_rows
from naive_draws import NaiveDraws, waving_classifier
from naive_sampler import NaiveSampler
from tiny_models import tiny_sit

from segue import (
    CFG,
    GFCG,
    ICG,
    TSR,
    AutoGuidance,
    EnergyPreserving,
    Engine,
    EpsilonScaling,
    Guidance,
    HiGS,
    Renorm,
    Rescale,
    SkipLayer,
    SpectralRefine,
    Window,
)
from segue.engine.planning.choices import source
from segue.engine.planning.schedule import Schedule
from segue.engine.rules.branch import COND
from segue.engine.rules.drawn import ClassifierReference
from segue.engine.running.draws import other_classes

CLASSES = 6
# fp32 against fp64, up to 16 calls: a choice's factor adds the rounding of its logits, a few times that of the outputs
ERROR = 2e-4
QUICK, CASES = 24, 120
CLASSIFIER = waving_classifier(CLASSES, seed=8)


READS = {"project": None, "combine_then_project": 4, "readout_update": 8}  # where each is given the rows; None: of one


def counting(read: Callable, place: int | None, reads: list[int]) -> Callable:
    """``read`` that notes how many distinct rows it reads."""

    def counted(*arguments, **options):
        reads.append(1 if place is None else len(set(arguments[place])))
        return read(*arguments, **options)

    return counted


class Choices(dict):
    """What was chosen at each call, and which of it was looked up."""

    def __init__(self):
        super().__init__()
        self.used = set()

    def __getitem__(self, key):
        self.used.add(key)
        return super().__getitem__(key)


class CorrectedDraws(NaiveDraws):
    """Corrections see what drawn terms add, too; ``evaluated`` has the branches that say something, (call, branch)."""

    def run(self, solver, noise, loop_noise=None):
        self.call, self.made, self.labels_used, self.largest, self.evaluated = 0, Choices(), [], 0.0, set()
        latents = NaiveSampler.run(self, solver, noise, loop_noise)
        self.evaluated |= {(call, source(draw)) for draw, call in self.made.used}
        return latents

    def velocity(self, y, sigma, step):
        assert self.call_steps[self.call] == step
        conditional, self.added = self.output(COND, y, sigma), torch.zeros_like(y)
        self.evaluated |= {(self.call, COND)}
        self.evaluated |= {(self.call, term.branch) for term in self.guidance.terms if self.term_weight(term, step)}
        for term in self.drawn:
            draw = term.branch.condition
            if isinstance(draw, ClassifierReference):
                self.made[draw, self.call] = self.choices(draw, y, sigma)
            if self.term_weight(term, step):
                looked = len(self.labels_used)
                self.added += self.moved(term, y, sigma, step, conditional)
                self.evaluated |= {(self.call, term.branch)} if len(self.labels_used) > looked else set()
        velocity = NaiveSampler.velocity(self, y, sigma, step)
        self.call += 1
        if self.guidance.corrections:
            return velocity
        return velocity + self.as_velocity(conditional + self.added, y, sigma) - self.as_velocity(conditional, y, sigma)

    def corrected(self, y, sigma, step, conditional, direction, scale, others):
        return super().corrected(y, sigma, step, conditional, direction, scale, others + self.added)


@pytest.fixture(scope="module")
def pairs():
    """Engines of three parameterisations with a weak network each, copies in fp64, and a list of the rows that are read."""
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
        kernels, reads = engine.selection.kernels, []
        kernels = replace(kernels, **{name: counting(getattr(kernels, name), at, reads) for name, at in READS.items()})
        engine.selection = replace(engine.selection, kernels=kernels)
        made.append((engine, {name: copy.deepcopy(network).double() for name, network in engine.models.items()}, reads))
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


def random_corrections(rng: random.Random) -> Guidance:
    """None, or some of the whole and of the solver's step."""
    if rng.random() < 0.4:
        return Guidance()
    whole = [Rescale(rng.uniform(0, 1)), Renorm(rng.uniform(1, 1.2)), EnergyPreserving(rng.uniform(0, 1))]
    chosen = rng.sample(whole, rng.choice((0, 1, 1, 2)))
    chosen += rng.choice(([], [HiGS(rng.uniform(0, 2), rng.uniform(0.3, 1), 0.1, 0.95, 0.3, rng.uniform(0, 0.5))]))
    chosen += rng.choice(([], [SpectralRefine(rng.uniform(-0.5, 0.5), rng.uniform(0, 0.9), rng.uniform(0.2, 1))]))
    chosen += rng.choice(([], [TSR(rng.uniform(0.8, 1.1), 2.0)], [EpsilonScaling(1.01)]))
    return sum(chosen, Guidance())


def check_case(pairs, case: int) -> None:
    rng = random.Random(case)
    engine, doubles, reads = pairs[case % len(pairs)]
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
    plain += random_corrections(rng)
    plan = engine.plan(drawn + plain, schedule=schedule, solver=solver)
    labels, seeds = [rng.randrange(CLASSES) for _ in range(batch)], [rng.randrange(2**40) for _ in range(batch)]
    spec = engine.spec
    noise = torch.randn(batch, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(case))
    reads.clear()
    with counted_rows() as rows:
        found = engine.sample(labels, drawn + plain, schedule=schedule, solver=solver, seeds=seeds, noise=noise).latents
    assert (sum(rows), sum(reads)) == (batch * plan.cost.blocks, plan.cost.evaluations)
    others = [
        other_classes(seed, plan.calls, own, CLASSES)[plan.steps].tolist() for seed, own in zip(seeds, labels, strict=True)
    ]
    naive = CorrectedDraws(
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
    assert len(naive.evaluated) == plan.cost.evaluations, f"case {case}: the loop needs {sorted(map(str, naive.evaluated))}"
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
