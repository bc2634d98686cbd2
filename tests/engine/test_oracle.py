"""The test that matters most: random plans against the naive sampler, and the work done against the work planned."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from correction_texts import ON_CFG, PLAIN
from naive_sampler import NaiveSampler, distinct_evaluations, executed_rows, path_of
from random_rules import SOLVERS, made_engines, random_channels, random_corrections, random_plan, random_solver, random_terms
from sweeps import first_fast

from segue import Engine, Guidance, parse_rule
from segue.engine.planning.compile import Request, compile_batch
from segue.engine.rules.correction import Correction
from segue.engine.rules.guidance import Term, Weight
from segue.kernels.philox import normal_noise

pytestmark = pytest.mark.filterwarnings("ignore::segue.PlanWarning")  # random rules have windows without a step
CASES, FAST_CHUNKS, BATCH_CASES, COSINE_CASES = 300, 4, 36, 14
# fp32 against fp64, relative to the largest value: up to 60 calls of a network, rounding 6e-8, guidance gains up to 5
RELATIVE_ERROR = 2e-5


class Counter:
    """Counts the rows that enter each block of a network."""

    def __init__(self, model):
        self.rows = [0] * len(model.blocks)
        self.handles = [
            block.register_forward_pre_hook(lambda _, arguments, layer=layer: self._count(layer, arguments[0]))
            for layer, block in enumerate(model.blocks)
        ]

    def _count(self, layer, h):
        self.rows[layer] += h.shape[0]

    def take(self) -> list[int]:
        rows, self.rows = self.rows, [0] * len(self.rows)
        return rows

    def close(self):
        for handle in self.handles:
            handle.remove()


@pytest.fixture(scope="module")
def engines():
    """Engines for three parameterisations, sizes and depths, with a weak network each, and fp64 copies."""
    return made_engines(
        {},
        {"prediction": "data_velocity", "time": "data_time", "channels": 3, "height": 2, "width": 2, "out_channels": 6},
        {"depth": 7, "exits": (1, 4), "dim": 24, "heads": 3, "height": 6, "width": 6, "patch": 2, "qk_norm": True},
        {"prediction": "epsilon", "time": "discrete", "out_channels": 8, "frequency_shift": 1.0, "mlp_norm_eps": 1e-5},
    )


@pytest.fixture(scope="module")
def cosine_engines():
    """Both directions of time along the cosine path."""
    return made_engines(
        {"path": "cosine", "depth": 4, "exits": (3,)},
        {"path": "cosine", "prediction": "data_velocity", "time": "data_time", "height": 2, "width": 6},
    )


def loop_noise(seeds: list[int], like: torch.Tensor, call: int) -> torch.Tensor:
    """The noise of a call inside the loop, fp64."""
    return normal_noise(torch.tensor(seeds), torch.full((len(seeds),), call), like[0].numel()).view(like.shape).double()


def check_counts(engine: Engine, plan, counters: dict, batch: int, labels, seeds, noise) -> torch.Tensor:
    """Run call by call; rows in every layer and evaluations must be the planned ones, and the fewest possible."""
    program = engine.load(plan, labels, seeds, noise)
    total = 0
    for live in plan.live:
        for counter in counters.values():
            counter.take()
        program.step(live)
        ran = {name: counter.take() for name, counter in counters.items()}
        evaluations = 0
        for name, rows in ran.items():
            depth = plan.specs[name].depth
            members = [plan.branches[i] for i in plan.members(live, name)]
            paths = [path_of(branch, plan.conditions, depth) for branch in members]
            fewest, alone = executed_rows(paths, depth), distinct_evaluations(paths)
            assert rows == [batch * count for count in fewest]
            if members:
                assert fewest == [layer.active for layer in plan.layout(live, name).layers]
            evaluations += alone
        assert plan.call_cost(live)[:2] == (evaluations, sum(map(sum, ran.values())) // batch)
        total += sum(map(sum, ran.values()))
    assert total == batch * plan.cost.blocks
    return program.x.clone()


@pytest.mark.parametrize("chunk", first_fast(range(10), FAST_CHUNKS))
def test_random_plans_equal_the_naive_sampler(engines, chunk):
    check_random_plans(engines, range(chunk * CASES // 10, (chunk + 1) * CASES // 10))


def test_the_first_cases_have_every_correction_where_it_acts(engines):
    """Those of a reference where that is live; new ones must be drawn too."""
    acting: set[type] = set()
    for case in range(FAST_CHUNKS * CASES // 10):
        guidance, plan = random_run(random.Random(case), engines[case % len(engines)][0], case)
        references = {i for i, branch in enumerate(plan.branches) if branch.condition != "cond"}
        live = any(references & {*own} for own in plan.live)
        acting |= {type(correction) for correction in guidance.corrections if live or not correction.needs_reference}
    numbers = ON_CFG | {"perp-neg": ""}
    named = (parse_rule(f"{PLAIN} + {name}:{numbers[name]}" if numbers[name] else f"{PLAIN} + {name}") for name in numbers)
    assert acting == {type(rule.guidance.corrections[-1]) for rule in named}


def test_random_plans_on_the_cosine_path(cosine_engines):
    check_random_plans(cosine_engines, range(COSINE_CASES))


def random_run(rng: random.Random, engine: Engine, case: int):
    """The rule and the plan of a case; every tenth may have 60 steps."""
    spec, solver = engine.spec, rng.choice(SOLVERS)
    steps = rng.choice((1, 1, 2, 3, 5, 8, 13, 60 if case % 10 == 0 else 4))
    guidance = random_terms(rng, spec, steps, random_channels(rng))
    guidance += random_corrections(rng, guidance, spec)
    if spec.prediction == "epsilon" and rng.random() < 0.3 and not guidance.zero_steps:
        solver = "ddpm"
    if spec.prediction == "epsilon" and solver == "dpm++sde":
        solver = "lcm"  # the other calls between the levels of a chain
    return guidance, random_plan(rng, engine, guidance, steps, solver)


def check_random_plans(engines, cases: range) -> None:
    worst = 0.0
    for case in cases:
        rng = random.Random(case)
        engine, doubles = engines[case % len(engines)]
        spec, batch = engine.spec, rng.randint(1, 5)
        guidance, plan = random_run(rng, engine, case)
        schedule, solver, steps = plan.schedule, plan.solver.name, len(plan.schedule.sigmas) - 1
        labels = [rng.randrange(spec.num_classes) for _ in range(batch)]
        seeds = [rng.randrange(2**40) for _ in range(batch)]
        noise = torch.randn(batch, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(case))
        counters = {name: Counter(model) for name, model in engine.models.items()}
        try:
            result = check_counts(engine, plan, counters, batch, labels, seeds, noise)
        finally:
            for counter in counters.values():
                counter.close()
        again = engine.sample(labels, guidance, schedule=schedule, solver=solver, seeds=seeds, noise=noise)
        assert torch.equal(again.latents, result), f"case {case}: a second run on the same buffers differs"

        naive = NaiveSampler(doubles, guidance, torch.tensor(labels), list(schedule.sigmas))
        assert np.allclose(naive.sigmas[:-1], plan.sigmas[np.unique(plan.steps, return_index=True)[1]], rtol=1e-12)
        expected = naive.run(solver, noise, partial(loop_noise, seeds, noise))
        error = float((result - expected).abs().max() / expected.abs().max().clamp_min(1))
        worst = max(worst, error)
        assert error < RELATIVE_ERROR, f"case {case}: {solver}, {steps} steps, batch {batch}, error {error:.2e}\n{plan}"
    print(f"worst relative error of cases {cases}: {worst:.2e}")


def random_numbers(rng: random.Random, guidance: Guidance, batch: int) -> Guidance:
    """The rule with other numbers for every sample: weights that may be zero, deltas, and those of the correction."""

    def weight(term: Term) -> Weight:
        if term.weight.function is not None:
            return term.weight
        base = [rng.choice((0.0, round(rng.uniform(-0.5, 2.0), 2))) for _ in range(batch)]
        return Weight(base, rng.choice((0.25, [rng.choice((0.0, 0.5)) for _ in range(batch)])))

    terms = tuple(replace(term, weight=weight(term)) for term in guidance.terms)

    def numbers(correction: Correction) -> Correction:
        values = {name: value for name, value in vars(correction).items() if name not in correction.constants}
        drawn = {
            name: tuple(value * rng.choice((1, 1.1 if name in ("a", "b", "rho") else 0.9)) for _ in range(batch))
            for name, value in values.items()
        }
        if "zero_steps" in drawn:
            drawn["zero_steps"] = tuple(rng.choice((0, 1, 2)) for _ in range(batch))
        return replace(correction, **drawn)

    return Guidance(terms, tuple(map(numbers, guidance.corrections)))


def random_batch(rng: random.Random, spec, steps: int, batch: int):
    """A rule with numbers for every sample, or a rule for every sample, with corrections of one kind where they fit."""
    channels = random_channels(rng)
    if rng.random() < 0.5:
        one = random_terms(rng, spec, steps, channels)
        return random_numbers(rng, one + random_corrections(rng, one, spec), batch)
    rules = [random_terms(rng, spec, steps, channels) for _ in range(batch)]
    corrections = random_corrections(rng, sum(rules, Guidance()), spec)
    # which every rule with a reference must have, where none of a kind changes nothing
    missing = any(type(correction).neutral() is None for correction in corrections.corrections)
    return [one + rng.choice([Guidance(), corrections][missing:]) for one in rules]


@pytest.mark.parametrize("chunk", first_fast(range(3)))
def test_random_rules_of_the_samples_of_one_batch(engines, chunk):
    """Each sample is what the naive sampler makes of its own rule alone; the work done is the work planned."""
    for case in range(chunk * BATCH_CASES // 3, (chunk + 1) * BATCH_CASES // 3):
        rng = random.Random(f"batch {case}")
        engine, doubles = engines[case % len(engines)]
        spec, steps, solver, batch = engine.spec, rng.choice((1, 2, 3, 5, 8)), random_solver(rng, engine), rng.randint(1, 4)
        rules = random_batch(rng, spec, steps, batch)
        plan = random_plan(rng, engine, rules, steps, solver)
        labels = [rng.randrange(spec.num_classes) for _ in range(batch)]
        seeds = [rng.randrange(2**40) for _ in range(batch)]
        noise = torch.randn(batch, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(case))
        counters = {name: Counter(model) for name, model in engine.models.items()}
        try:
            result = check_counts(engine, plan, counters, batch, labels, seeds, noise)
        finally:
            for counter in counters.values():
                counter.close()
        for i, own in enumerate(plan.samples):
            draws = partial(loop_noise, seeds[i : i + 1], noise[i : i + 1])
            naive = NaiveSampler(doubles, own.guidance, torch.tensor(labels[i : i + 1]), list(plan.schedule.sigmas))
            expected = naive.run(solver, noise[i : i + 1], draws)
            error = float((result[i] - expected[0]).abs().max() / expected.abs().max().clamp_min(1))
            assert error < RELATIVE_ERROR, f"case {case}, sample {i}: {solver}, {steps} steps, {error:.2e}\n{own}\n{plan}"


def random_requests(rng: random.Random, engine: Engine, batch: int) -> list[Request]:
    """Rules, schedules and solvers of their own; levels that a discrete model takes for one are drawn again."""
    rules = random_batch(rng, engine.spec, 8, batch)
    rules = list(rules) if isinstance(rules, list) else [rules.of_sample(i) for i in range(batch)]
    requests = []
    for rule in rules:
        solver = random_solver(rng, engine)
        schedule = random_plan(rng, engine, None, rng.choice((1, 2, 3, 5, 8)), solver).schedule
        requests.append(Request(rule, schedule, solver))
    return requests


@pytest.mark.parametrize("chunk", first_fast(range(3)))
def test_requests_that_come_and_go_in_one_batch(engines, chunk):
    """Samples of other rules, solvers and step counts share the steps, each from its own beginning to its own end."""
    for case in range(chunk * BATCH_CASES // 3, (chunk + 1) * BATCH_CASES // 3):
        rng = random.Random(f"requests {case}")
        engine, doubles = engines[case % len(engines)]
        spec, batch = engine.spec, rng.randint(1, 4)
        requests = random_requests(rng, engine, batch)
        plan = compile_batch(requests, engine.specs)
        labels = [rng.randrange(spec.num_classes) for _ in range(batch)]
        seeds, begins = [rng.randrange(2**40) for _ in range(batch)], [rng.randrange(4) for _ in range(batch)]
        noise = torch.randn(batch, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(case))
        program = engine.load(plan, labels, seeds, noise)
        states = [noise[i] * own.parameterization.prior_scale(own.sigmas[0]) for i, own in enumerate(plan.samples)]
        calls, ends = np.zeros(batch, int), [begin + own.calls for begin, own in zip(begins, plan.samples, strict=True)]
        for tick in range(max(ends)):
            for i in range(batch):
                if tick == begins[i]:  # whatever was in its place before
                    program.x[i], program.call[i], calls[i] = states[i], 0, 0
                    for memory in program.memory():
                        memory[i] = 0.0
            running = np.array([begin <= tick < end for begin, end in zip(begins, ends, strict=True)])
            program.combination.forget(np.array([tick == begin for begin in begins]), program.call)
            program.step(plan.live_at(np.where(running, calls, plan.calls), calls == 0))
            calls = np.minimum(calls + 1, plan.calls)
            program.call.copy_(torch.from_numpy(calls))
        for i, own in enumerate(plan.samples):
            draws = partial(loop_noise, seeds[i : i + 1], noise[i : i + 1])
            naive = NaiveSampler(doubles, own.guidance, torch.tensor(labels[i : i + 1]), list(own.schedule.sigmas))
            expected = naive.run(own.solver.name, noise[i : i + 1], draws)
            error = float((program.x[i] - expected[0]).abs().max() / expected.abs().max().clamp_min(1))
            assert error < RELATIVE_ERROR, f"case {case}, sample {i} from {begins[i]}: {error:.2e}\n{own}\n{plan}"
