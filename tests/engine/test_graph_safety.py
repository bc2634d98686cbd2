"""A step could be captured once and replayed: same operations on the same storages, no host synchronisation."""

import gc

import pytest
import torch
from step_trace import HOST_SYNCHRONISING, trace_step
from tiny_models import tiny_sit

from segue import CFG, SGG, AutoGuidance, EarlyExit, Engine, SkipLayer

RULES = {
    "unguided": None,
    "cfg": CFG(3.0),
    "sgg": SGG(CFG(3.0), SkipLayer(2.0, (1, 3)), 0.5),
    "exit": CFG(2.0) + EarlyExit(1.0, 2),
    "autoguidance": AutoGuidance(1.0),
    "channels": CFG(3.0, channels=2),
}


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(), {"weak": tiny_sit(1, depth=2, exits=())}, device="cpu")


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm++2m", "euler-maruyama"])
@pytest.mark.parametrize("rule", RULES)
def test_two_steps_with_one_live_set_do_the_same_operations_on_the_same_storages(engine, rule, solver):
    plan = engine.plan(RULES[rule], steps=8, solver=solver)
    program = engine.load(plan, [0, 4], [1, 2], torch.randn(2, 4, 6, 10))
    for live in plan.live_sets:
        program.step(live)
        first, second = trace_step(program, live), trace_step(program, live)
        assert len(first.operations) > 50
        assert first.operations == second.operations
        for name, _ in first.operations:
            assert not any(word in name for word in HOST_SYNCHRONISING), name


@pytest.mark.parametrize("rule", RULES)
def test_no_allocation_outlives_a_step(engine, rule):
    plan = engine.plan(RULES[rule], steps=8)
    program = engine.load(plan, [0, 4], [1, 2], torch.randn(2, 4, 6, 10))

    def storages() -> set[int]:
        gc.collect()
        return {id(o) for o in gc.get_objects() if issubclass(type(o), torch.Tensor)}

    for live in plan.live_sets:
        program.step(live)
        before = storages()
        program.step(live)
        assert storages() <= before


def test_a_step_reads_its_numbers_from_the_tables(engine):
    """Changing a table between two steps changes the step: nothing was baked in."""
    plan = engine.plan(CFG(3.0), steps=8)
    noise = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    results = []
    for scale in (3.0, 5.0):
        program = engine.load(engine.plan(CFG(scale), steps=8), [0, 4], [1, 2], noise)
        program.step(plan.live[0])
        results.append(program.x.clone())
    assert (results[0] - results[1]).abs().max() > 1e-3


def test_samples_may_stand_at_different_calls(engine):
    """The counter is per sample: a step over two samples at different calls equals two steps over one."""
    plan = engine.plan(CFG(3.0), steps=8)
    noise = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    program = engine.load(plan, [0, 4], [1, 2], noise)
    program.call.copy_(torch.tensor([2, 5]))
    program.step((0, 1))
    mixed = program.x.clone()
    assert program.call.tolist() == [3, 6]
    for i, call in enumerate((2, 5)):
        program = engine.load(plan, [0, 4], [1, 2], noise)
        program.call.fill_(call)
        program.step((0, 1))
        assert torch.equal(program.x[i], mixed[i])
