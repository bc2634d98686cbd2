"""Capture and replay.  On CPU the capture is a recorder, which shows what is captured when; on CUDA it is the real one."""

import gc
import math
import weakref

import pytest
import torch
from live_sets import engine_of
from live_sets import load as load_run
from recorded_captures import Recorder
from tiny_models import tiny_sit

from segue import CFG, SGG, Engine, SkipLayer, Window

RULE = SGG(CFG(3.0), SkipLayer(2.0, (1, 2)), 0.5)
ALLOCATED_AT_ONCE = 512  # bytes: what the caching allocator rounds up to


def load(engine, plan, seed=0):
    return engine.load(plan, [0, 4], [1, 2], torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(seed)))


def run(program):
    for live in program.plan.live:
        program.advance(live)
    return program.x.clone()


def run_and_release(engine, program):
    """The result, with the program given back for the next load to take."""
    result = run(program)
    engine.release(program)
    return result


def test_each_live_set_is_captured_once_and_warm_up_leaves_no_trace():
    engine = Engine(tiny_sit(), device="cpu")
    plan = engine.plan(RULE, steps=6)
    eager = run_and_release(engine, load(engine, plan))
    recorder = Recorder()
    program = load(engine, plan)
    program.use_graphs(recorder)
    assert torch.equal(run(program), eager)
    assert (recorder.captures, recorder.replays) == (2, 6)


def test_a_program_and_its_graphs_go_with_the_last_reference():
    engine = Engine(tiny_sit(), device="cpu")
    program = load(engine, engine.plan(RULE, steps=2))
    program.use_graphs(Recorder())
    run(program)
    gone = weakref.ref(program)
    gc.disable()
    try:
        del program
        assert gone() is None and "program" not in engine.explain()
    finally:
        gc.enable()


def test_other_numbers_do_not_capture_again():
    engine = Engine(tiny_sit(), device="cpu")
    recorder = Recorder()
    program = load(engine, engine.plan(RULE, steps=6))
    program.use_graphs(recorder)
    engine.release(program)
    for scale, switch, steps, schedule in ((3.0, 0.5, 6, "linear"), (1.5, 0.3, 11, "shift"), (7.0, 0.8, 28, "shift=2")):
        rule = SGG(CFG(scale), SkipLayer(scale / 2, (1, 2)), switch)
        plan = engine.plan(rule, steps=steps, schedule=schedule)
        program = load(engine, plan, seed=steps)
        assert program.graphs is not None
        captured = run_and_release(engine, program)
        program.graphs, kept = None, program.graphs
        assert torch.equal(run_and_release(engine, load(engine, plan, seed=steps)), captured)
        program.graphs = kept
    assert recorder.captures == 2


@pytest.fixture(params=["sit", "dit", "sd3.5-medium"])
def recorded(request):
    """``recorded(rule, seed=0, batch=2, **plan options)`` runs a rule to its end and returns the captures that it took."""
    engine = engine_of(request.param, device="cpu")
    recorder = engine.capture = Recorder()

    def captures(rule, seed=0, batch=2, **options) -> int:
        before = recorder.captures
        program = load_run(engine, engine.plan(rule, **options), batch, seed)
        assert torch.isfinite(run_and_release(engine, program)).all()
        return recorder.captures - before

    return captures


def test_what_lies_in_tables_and_buffers_does_not_capture_again(recorded):
    assert recorded(RULE, steps=6) == 2
    assert recorded(RULE, steps=6, seed=5) == 0  # other labels or prompts, noise and seeds
    assert recorded(SGG(CFG(7.5), SkipLayer(0.5, (1, 2)), 0.5), steps=6) == 0
    assert recorded(SGG(CFG(3.0), SkipLayer(2.0, (1, 2)), 0.8), steps=6) == 0
    assert recorded(SGG(CFG(lambda sigma: 1 + sigma), SkipLayer(2.0, (1, 2), delta=0.5), 0.5), steps=6) == 0
    assert recorded(RULE, schedule=[0.9, 0.77, 0.5, 0.2, 0.0]) == 0
    assert recorded(RULE, steps=2) == recorded(RULE, steps=28) == 0
    assert recorded(RULE, steps=6, solver="dpm++2m") == recorded(RULE, steps=6, solver="heun") == 0
    assert recorded(RULE, steps=6) == 0


def test_another_shape_batch_or_live_set_captures_again(recorded):
    assert recorded(RULE, steps=6) == 2
    assert recorded(RULE, steps=6, batch=3) == 2
    assert recorded(RULE, steps=6, height=8, width=4) == 2
    assert recorded(SGG(CFG(3.0), SkipLayer(2.0, (2,)), 0.5), steps=6) == 2  # another weak branch
    assert recorded(CFG(3.0), steps=6) == 1
    assert recorded(CFG(3.0, channels=2), steps=6) == 1
    assert recorded(CFG(3.0).reused(2), steps=6) == 2  # calls that evaluate a direction, and calls that reuse it
    assert recorded(CFG(3.0), steps=6, solver="euler-maruyama") == 1  # noise inside the step
    # the same branches in a set that has not occurred: with windows that overlap all three are live
    both = CFG(3.0, window=Window.sigma(0.4, 1.0)) + SkipLayer(2.0, (1, 2), window=Window.sigma(0.0, 0.6))
    assert recorded(both, steps=6) == 1
    assert recorded(RULE, steps=6) == 0  # everything before is still there


def test_rules_of_samples_capture_once_for_their_branches(recorded):
    """Tables of their own are other tables; what lies in them is not captured, and the branches are those of all samples."""
    assert recorded(CFG([3.0, 4.0]), steps=6) == 1
    assert recorded(CFG([1.5, 9.0]), steps=8, seed=3) == recorded(CFG(3.0, delta=[0.5, 0.0]), steps=6) == 0
    assert recorded([CFG(2.0), CFG(5.0, window=Window.sigma(0.4, 1.0))], steps=6) == 0
    assert recorded([CFG(2.0, window=Window.steps(1, 3)), CFG(5.0, window=Window.steps(1, 2))], steps=6) == 1  # neither, later
    assert recorded([RULE, None], steps=6) == recorded([None, RULE], steps=6) + 2 == 2
    assert recorded(CFG(3.0), steps=6) == 1


def test_another_dtype_is_another_engine_with_captures_of_its_own():
    recorders = {dtype: Recorder() for dtype in (torch.float32, torch.bfloat16)}
    for dtype, recorder in recorders.items():
        engine = engine_of("sit", device="cpu", dtype=dtype)
        engine.capture = recorder
        for seed in range(2):
            run_and_release(engine, load_run(engine, engine.plan(RULE, steps=6), 2, seed))
    assert [recorder.captures for recorder in recorders.values()] == [2, 2]


def test_runs_beyond_the_capacity_of_the_tables_capture_once_more(recorded):
    """Tables hold 32 calls, then 64, 128, ...: the one case in which the step count matters."""
    assert recorded(RULE, steps=32) == 2
    assert recorded(RULE, steps=33) == 2
    assert recorded(RULE, steps=64) == recorded(RULE, steps=5) == 0


@pytest.mark.parametrize("steps", [1, 32])
def test_a_live_set_that_begins_at_the_last_call_warms_up_inside_the_tables(steps):
    """32 calls fill the tables; on CUDA a read beyond them would end the process."""
    engine = Engine(tiny_sit(), device="cpu")
    plan = engine.plan(CFG(3.0, window=Window.steps(steps, steps)), steps=steps)
    eager = run(load(engine, plan))
    program = load(engine, plan)
    assert program.key.calls == 32
    program.use_graphs(Recorder())
    assert torch.equal(run(program), eager)


def test_a_failed_capture_restores_the_state():
    engine = Engine(tiny_sit(), device="cpu")
    plan = engine.plan(RULE, steps=6)
    program = load(engine, plan)
    program.use_graphs(Recorder(fail_at=1))
    before = [tensor.clone() for tensor in program.state()]
    with pytest.raises(RuntimeError, match="capture failed"):
        program.advance(plan.live[0])
    assert all(torch.equal(a, b) for a, b in zip(before, program.state(), strict=True))


@pytest.mark.gpu
def test_replay_equals_eager_bit_for_bit_and_does_not_drift_or_leak():
    engine = Engine(tiny_sit(dim=64), device="cuda", dtype=torch.bfloat16)
    eager_engine = Engine(tiny_sit(dim=64), device="cuda", dtype=torch.bfloat16, graphs=False)
    plan = engine.plan(RULE, steps=28)
    first = run_and_release(engine, load(engine, plan))
    assert torch.equal(first, run(load(eager_engine, plan)))
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for _ in range(1000 // 28 + 1):
        last = run_and_release(engine, load(engine, plan))
    torch.cuda.synchronize()
    assert torch.equal(first, last)
    copy = first.numel() * first.element_size()
    assert torch.cuda.memory_allocated() <= held + ALLOCATED_AT_ONCE * math.ceil(copy / ALLOCATED_AT_ONCE)
