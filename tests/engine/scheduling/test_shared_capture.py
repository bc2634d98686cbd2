"""A forward over rows of many runs could be captured once: what differs between two of one layout lies on the device."""

import numpy as np
import pytest
import torch
from live_sets import ARCHITECTURES, engine_of
from lone_requests import alone, drawing_of
from recorded_captures import Recorder
from step_trace import check_repeats

from segue import CFG, NAG, AutoGuidance, EarlyExit, Engine, PerturbedLayers, SkipLayer
from segue.engine.core import EngineCore
from segue.engine.scheduling import lane as lane_module
from segue.engine.scheduling.drawing import Drawing
from segue.engine.scheduling.lane import Lane
from segue.engine.scheduling.lane_runs import LaneRun
from segue.engine.scheduling.scheduler import StepScheduler
from segue.engine.scheduling.sizes import Sizes
from segue.engine.scheduling.slots import Slots
from segue.models import shared_modulation

KINDS = [None, CFG(2.0), SkipLayer(1.0, (1,)), PerturbedLayers(1.0, (2,), kind="attention_skip"), AutoGuidance(0.5)]


def lane_of(engine: EngineCore, drawing: Drawing) -> Lane:
    return Lane(engine.models, drawing.plan, 8, Sizes(), engine.device, engine.selection.kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forwards_of_one_layout_do_the_same_on_the_same_storages(architecture, dtype):
    engine = engine_of(architecture, device="cpu", dtype=dtype)
    rules = [*KINDS, *([NAG(3.0), NAG(4.0) + SkipLayer(1.0, (1,))] if engine.spec.text_tokens else [EarlyExit(1.0, 2)])]
    drawings = [drawing_of(engine, engine.plan(rule, steps=6), i) for i, rule in enumerate(rules)]
    lane = lane_of(engine, drawings[0])
    runs = [lane.join(drawing) for drawing in drawings]
    lane.tick(runs)
    network = lane.networks["main"]
    seen = []

    def note(rows):
        seen.append(rows)
        return put(rows)

    put, network.put = network.put, note
    layouts = set()

    def next_tick():
        """Other calls, and other rows of the same layout: what a tick does on the host."""
        lane.tick(runs)
        layouts.add(seen[-1].layout)

    next_tick()
    (layout,) = layouts
    trace = check_repeats(lambda: network.forward(lane.states, layout), before=next_tick)
    assert len(layouts) == 1 and len(trace.operations) > 50


def test_requests_of_other_numbers_replay_what_was_captured():
    engine, reference = (engine_of("sd3.5-medium", device="cpu") for _ in range(2))
    recorder = engine.capture = Recorder()
    scheduler = StepScheduler(engine, lambda drawing, guidance: drawing, start=False)

    def draw(scale: float, steps: int, seed: int) -> int:
        """Draw four requests; how many forwards are captured by then."""
        plans = [engine.plan(rule, steps=steps) for rule in (CFG(scale), None, SkipLayer(scale, (1,)), NAG(scale, tau=scale))]
        drawings = [drawing_of(engine, plan, seed + i) for i, plan in enumerate(plans)]
        requests = [scheduler.submit(drawing) for drawing in drawings]
        while scheduler.tick():
            pass
        captures = recorder.captures
        for request, drawing in zip(requests, drawings, strict=True):
            assert torch.allclose(request.result(timeout=60), alone(reference, drawing), rtol=1e-5, atol=1e-5)
        return captures

    assert draw(2.0, 3, seed=0) == 1
    replays = recorder.replays
    assert draw(3.5, 3, seed=100) == 1
    assert recorder.replays == replays + 3
    scheduler.close()


def test_a_run_looks_ahead_in_a_ring_of_few_calls(monkeypatch):
    monkeypatch.setattr(shared_modulation, "MOST_AHEAD", 4)
    engine = engine_of("dit", device="cpu")
    drawing = drawing_of(engine, engine.plan(CFG(2.0), steps=11), 3)
    lane = lane_of(engine, drawing)
    assert lane.networks == {}
    run: LaneRun = lane.join(drawing)
    while not run.ended:
        lane.tick([run])
    assert lane.networks["main"].table.ahead == 4
    expected = alone(engine, drawing)
    assert float((run.x - expected).abs().max() / expected.abs().max()) < 1e-5


def changed(engine: EngineCore) -> None:
    """Other numbers in what is computed before a run's calls: modulation, heads that are copied in part, prompts."""
    model = engine.models["main"]
    with torch.no_grad():
        for weight in model.run_weights():
            weight.mul_(1.25)
        if isinstance(engine, Engine):
            model.final_layer.linear.weight.mul_(1.5)


@pytest.mark.parametrize("architecture", ["sit", "dit", "sd3.5-medium"])
def test_weights_that_change_between_ticks_act_on_the_next_one(architecture):
    """What was computed ahead of the calls, or copied, is made anew."""
    engine = engine_of(architecture, device="cpu")
    plan = engine.plan(CFG(2.0), steps=4)
    drawing = drawing_of(engine, plan, 1)
    lane = lane_of(engine, drawing)
    run = lane.join(drawing)
    lane.tick([run])
    state = run.x.clone()
    changed(engine)
    lane.tick([run])
    program = engine.prepare(plan, drawing.start.conditions, [drawing.seed], state)
    program.place(np.ones(1, dtype=np.int64))
    program.step(plan.live[1])
    assert float((run.x - program.x).abs().max() / program.x.abs().max()) < 1e-5


def test_layouts_that_requests_choose_are_not_captured_for_ever(monkeypatch):
    monkeypatch.setattr(lane_module, "MOST_GRAPHS", 2)
    engine, reference = (engine_of("sit", device="cpu") for _ in range(2))
    engine.capture = Recorder()
    scheduler = StepScheduler(engine, lambda drawing, guidance: drawing, start=False)
    for i, layers in enumerate(((0,), (1,), (2,), (0, 1))):
        drawing = drawing_of(engine, engine.plan(SkipLayer(1.0, layers), steps=2), i)
        request = scheduler.submit(drawing)
        while scheduler.tick():
            pass
        assert torch.allclose(request.result(timeout=60), alone(reference, drawing), rtol=0, atol=1e-5)
    (lane,) = scheduler._slots.lanes
    assert (engine.capture.captures, len(lane.graphs)) == (4, 2)
    scheduler.close()


def test_a_further_network_counts_in_the_memory_of_its_lane():
    engine = engine_of("sit", device="cpu")
    slots = Slots(engine, 2, Sizes())
    taken = []
    for rule in (CFG(2.0), AutoGuidance(0.5)):
        slots.join(drawing_of(engine, engine.plan(rule, steps=2), 1))
        (lane,) = slots.lanes
        taken.append(lane.taken)
    assert taken[0] < taken[1] == Lane.memory(engine.models, engine.plan(AutoGuidance(0.5), steps=2), 2, Sizes())
    slots.memory = taken[0]
    assert not slots.may_join(engine.plan(AutoGuidance(0.5), steps=2))
