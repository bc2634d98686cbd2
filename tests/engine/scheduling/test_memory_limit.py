"""No mix of requests takes more memory than a scheduler may have, and each that is accepted has its turn."""

import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from live_sets import engine_of
from lone_requests import alone, drawing_of
from tiny_models import tiny_sit
from torch import Tensor, nn

from segue import CFG, ICG, NAG, AutoGuidance, Engine, Guidance, SkipLayer
from segue.engine.core import EngineCore
from segue.engine.planning.plan import Plan
from segue.engine.scheduling.errors import MemoryLimitError
from segue.engine.scheduling.lane import Lane
from segue.engine.scheduling.memory import BLOCK_WIDTH
from segue.engine.scheduling.scheduler import StepScheduler
from segue.engine.scheduling.sizes import Sizes
from segue.engine.scheduling.slots import KEPT, Slots
from segue.engine.scheduling.solo import SoloRun

ALL_LAYERS = [tuple(layer for layer in range(5) if mask >> layer & 1) for mask in range(1, 31)]
LONG = sum((SkipLayer(0.1, layers) for layers in ALL_LAYERS), Guidance())  # more kinds of rows than a tick has


@pytest.fixture
def engine():
    weak = {name: tiny_sit(seed, depth=2, exits=(1,), dim=16, heads=1) for seed, name in ((8, "weak"), (9, "other"))}
    return Engine(tiny_sit(), weak, device="cpu")


def lane_bytes(engine: EngineCore, plan: Plan, count: int = 2) -> int:
    return Lane.memory(engine.models, plan, count, Sizes())


def taken(slots: Slots) -> int:
    return sum(lane.taken for lane in slots.lanes) + sum(run.taken for run in slots.runs if isinstance(run, SoloRun))


@pytest.mark.parametrize("first", [ICG(2.0), LONG], ids=["drawn labels", "many rows"])
def test_a_run_alone_does_not_lift_the_limit_of_its_size(engine, first):
    """Whichever of the two comes first."""
    by_itself, shared = (engine.plan(rule, steps=2) for rule in (first, CFG(2.0)))
    slots = Slots(engine, 2, Sizes(), lane_bytes(engine, shared) - 1)
    for _ in range(2):
        slots.check(engine.plan(ICG(2.0), steps=2))
        with pytest.raises(MemoryLimitError, match="runs of 6 x 10 latents would take"):
            slots.check(shared)
        assert not slots.may_join(shared)
    slots.memory += 1
    slots.check(shared)
    slots.join(drawing_of(engine, by_itself, 1))
    assert not slots.may_join(shared)


def test_a_run_alone_of_many_branches_is_refused_or_waits(engine):
    plan = engine.plan(LONG, steps=2)
    slots = Slots(engine, 8, Sizes())
    drawing = drawing_of(engine, plan, 1)
    run = slots.join(drawing)
    assert isinstance(run, SoloRun) and not slots.lanes
    slots.memory = 2 * run.taken - 1
    assert not slots.may_join(plan)
    slots.leave(run)
    assert slots.may_join(plan)
    slots.memory = run.taken - 1
    with pytest.raises(MemoryLimitError, match="a run of 31 branches on 6 x 10 latents would take"):
        slots.check(plan)


@pytest.mark.parametrize("architecture", ["sit", "dit", "sd3"])
def test_what_is_counted_of_a_run_alone_are_its_buffers_and_what_its_blocks_pass_on(architecture):
    engine = engine_of(architecture, device="cpu")
    rules = [SkipLayer(1.0, (1,)), CFG(2.0) + SkipLayer(0.5, (0,)) + SkipLayer(0.5, (2,)), AutoGuidance(0.5)]
    if architecture == "sd3":
        rules.append(NAG(3.0))
    for size in ({}, {"height": 2 * engine.spec.height, "width": engine.spec.width}):
        for plan in (engine.plan(rule, steps=3, solver="dpm++3m", **size) for rule in rules):
            drawing = drawing_of(engine, plan, 1)
            program = engine.prepare(plan, drawing.start.conditions, [1], drawing.start.state)
            held = sum(tensor.numel() * tensor.element_size() for tensor in buffers(program))
            rows = [getattr(rows, name) for rows in program.rows.values() for name in ("hidden", "text") if hasattr(rows, name)]
            least = held + BLOCK_WIDTH * sum(tensor.numel() * tensor.element_size() for tensor in rows)
            assert SoloRun.memory_of(engine, plan) == pytest.approx(least, rel=0.05)  # small tables are not counted one by one


def buffers(program: Any) -> Iterable[Tensor]:
    """The tensors of a program that are no weights."""
    found, seen = [], set()
    weights = {tensor.data_ptr() for model in program.models.values() for tensor in model.state_dict().values()}
    stack = [vars(program)]
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, (nn.Module, type, str)):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found += [value] if value.data_ptr() not in weights else []
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
        elif type(value).__module__.startswith("segue.") and hasattr(value, "__dict__") and not isinstance(value, Plan):
            stack.append(vars(value))
    return list({tensor.data_ptr(): tensor for tensor in found if tensor.numel()}.values())


def test_a_lane_that_grows_drops_those_without_runs(engine):
    """And is counted with all of its networks, whichever run brought them."""
    small, rules = (
        engine.plan(CFG(2.0), steps=2, height=2, width=4),
        [CFG(2.0), AutoGuidance(0.5), AutoGuidance(0.5, model="other")],
    )
    plans = [engine.plan(rule, steps=2) for rule in rules]
    names = ("main", "weak", "other")
    whole = Lane.memory(engine.models, plans[0], 3, Sizes(), names)
    slots = Slots(engine, 3, Sizes(), lane_bytes(engine, small, 3) + lane_bytes(engine, plans[1], 3))
    slots.leave(slots.join(drawing_of(engine, small, 1)))
    lanes = []
    for plan in plans:
        assert slots.may_join(plan)
        slots.join(drawing_of(engine, plan, 1))
        lanes.append(len(slots.lanes))
        assert taken(slots) <= slots.memory
    (lane,) = slots.lanes
    assert lanes == [2, 2, 1] and lane.taken == whole and set(lane.networks) == set(names)


def test_a_lane_without_runs_gives_way_where_its_networks_leave_no_room(engine):
    """Each pair of networks fits, all three do not: the second run waits for the first, and not for ever."""
    first, second = (engine.plan(AutoGuidance(0.5, model=name), steps=2) for name in ("weak", "other"))
    slots = Slots(engine, 2, Sizes(), max(lane_bytes(engine, first), lane_bytes(engine, second)))
    run = slots.join(drawing_of(engine, first, 1))
    assert not slots.may_join(second)
    slots.leave(run)
    assert slots.may_join(second)
    slots.join(drawing_of(engine, second, 1))
    assert taken(slots) <= slots.memory and len(slots.lanes) == 1


def test_a_large_program_is_not_kept_for_later_runs(engine):
    """The engine keeps eight: what they take is a part of the memory."""
    plan = engine.plan(LONG, steps=2)
    need = SoloRun.memory_of(engine, plan)
    for share, kept in ((KEPT, 1), (KEPT * 1.01, 0)):
        slots = Slots(engine, 2, Sizes(), int(engine.MAX_PROGRAMS * need / share))
        engine._programs.clear()
        slots.leave(slots.join(drawing_of(engine, plan, 1)))
        assert len(engine._programs) == kept


def test_any_mix_of_sizes_and_rules_stays_in_the_memory_and_all_are_drawn(engine, seed):
    rng = random.Random(seed)
    rules = [None, CFG(2.0), AutoGuidance(0.5), AutoGuidance(0.5, model="other"), ICG(2.0), LONG]
    sizes = [(height, width) for height in (2, 6, 10) for width in (2, 4, 10, 14)]
    plans = [engine.plan(rng.choice(rules), steps=rng.choice((1, 3)), height=h, width=w) for h, w in rng.choices(sizes, k=40)]
    memory = max(max(lane_bytes(engine, plan, 3), SoloRun.memory_of(engine, plan)) for plan in plans)
    drawings = [drawing_of(engine, plan, i) for i, plan in enumerate(plans)]
    scheduler = StepScheduler(engine, lambda i, guidance: drawings[i], slots=3, memory=memory, start=False)
    requests = [scheduler.submit(i) for i in range(len(plans))]
    while scheduler.tick():
        assert taken(scheduler._slots) <= memory
    for request, drawing in zip(requests, drawings, strict=True):
        assert torch.allclose(request.result(timeout=60), alone(engine, drawing), rtol=0, atol=1e-5)
    scheduler.close()
