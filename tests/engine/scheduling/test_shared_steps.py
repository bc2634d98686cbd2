"""Requests that share steps: every picture is that of the request alone, and the rows that ran are those that were planned."""

import random
from dataclasses import dataclass

import pytest
import torch
from counted_rows import counted_rows
from live_sets import engine_of
from lone_requests import alone, drawing_of
from random_rules import made_engines, random_channels, random_corrections, random_plan, random_solver, random_terms
from recorded_captures import Recorder
from sweeps import first_fast

from segue import CFG, NAG, SGG, Engine, PerturbedLayers, Rescale, SkipLayer, Window
from segue.engine.core import EngineCore
from segue.engine.scheduling.drawing import Drawing
from segue.engine.scheduling.lane import why_alone
from segue.engine.scheduling.scheduler import StepScheduler
from segue.engine.scheduling.sizes import SIZES

REQUESTS = 320
# fp32, relative to the largest value: other numbers of rows in a product, up to 20 calls, guidance gains up to 5
ERROR = 1e-5


@dataclass(frozen=True, eq=False)
class Load:
    """What a request is, as a test makes it, and when it comes."""

    drawing: Drawing
    tick: int


@pytest.fixture(scope="module")
def engines():
    return [
        engine
        for engine, _ in made_engines(
            {},
            {"depth": 7, "exits": (1, 4), "dim": 24, "heads": 3, "height": 6, "width": 6, "patch": 2, "qk_norm": True},
            {"prediction": "epsilon", "time": "discrete", "out_channels": 8, "frequency_shift": 1.0, "mlp_norm_eps": 1e-5},
        )
    ]


def random_request(rng: random.Random, engine: Engine) -> Drawing:
    """Any rule and solver, up to eight steps."""
    steps = rng.choice((1, 2, 3, 5, 8))
    rule = random_terms(rng, engine.spec, steps, random_channels(rng))
    rule += random_corrections(rng, rule, engine.spec)
    plan = random_plan(rng, engine, rule, steps, random_solver(rng, engine))
    return drawing_of(engine, plan, rng.randrange(2**40))


def draw_all(scheduler: StepScheduler, loads: list[Load]) -> list[torch.Tensor]:
    """Let the requests come at their ticks; their results."""
    requests, tick, coming = {}, 0, sorted(loads, key=lambda load: load.tick)
    left = True
    while left or len(requests) < len(coming):
        for load in coming:
            if load.tick == tick:
                requests[load] = scheduler.submit(load)
        left = scheduler.tick()
        tick += 1
    return [requests[load].result(timeout=60) for load in loads]


def scheduler_of(engine: EngineCore, **options) -> StepScheduler:
    return StepScheduler(engine, lambda load, guidance: load.drawing, start=False, queue=1000, **options)


@pytest.mark.parametrize("chunk", first_fast(range(8), 3))
def test_every_picture_of_a_mixed_load_is_that_of_its_request_alone(engines, chunk):
    rng = random.Random(f"load {chunk}")
    engine = engines[chunk % len(engines)]
    loads = [Load(random_request(rng, engine), rng.randrange(60)) for _ in range(REQUESTS // 8)]
    scheduler = scheduler_of(engine, slots=rng.choice((3, 8)), sizes=rng.choice((SIZES, None)))  # padded, and not
    with counted_rows() as counted:
        drawn = draw_all(scheduler, loads)
    stats = scheduler.stats()
    ran = sum(counted)
    expected = [alone(engine, load.drawing) for load in loads]
    for load, latents, single in zip(loads, drawn, expected, strict=True):
        error = float((latents - single).abs().max() / single.abs().max().clamp_min(1))
        assert error < ERROR, f"{load.drawing.plan}: {error:.2e}"
    assert (stats.finished, stats.failed, stats.cancelled) == (len(loads), 0, 0)
    plans = [load.drawing.plan for load in loads]
    assert stats.rows_used == sum(plan.cost.evaluations for plan in plans)
    assert stats.rows_run >= stats.rows_used
    blocks = sum(plan.cost.blocks for plan in plans)
    assert blocks <= ran
    scheduler.close()


def test_the_blocks_that_run_are_the_planned_ones_where_nothing_is_captured(engines):
    rng = random.Random("exact")
    loads = [Load(random_request(rng, engines[0]), rng.randrange(20)) for _ in range(24)]
    scheduler = scheduler_of(engines[0], slots=4)  # without graphs nothing is padded
    with counted_rows() as counted:
        draw_all(scheduler, loads)
    stats = scheduler.stats()
    assert sum(counted) == sum(load.drawing.plan.cost.blocks for load in loads)
    assert stats.rows_run == stats.rows_used
    scheduler.close()


def test_where_forwards_are_captured_rows_are_padded_to_few_sizes():
    engine = engine_of("sit", device="cpu")
    loads = [Load(drawing_of(engine, engine.plan(None, steps=2), i), 0) for i in range(5)]
    padded = {}
    for capture in (None, Recorder()):
        engine.capture = capture
        scheduler = scheduler_of(engine)
        drawn = draw_all(scheduler, loads)
        padded[capture is not None] = scheduler.stats().rows_run
        for load, latents in zip(loads, drawn, strict=True):
            assert torch.allclose(latents, alone(engine, load.drawing), rtol=0, atol=ERROR)
        scheduler.close()
    assert padded == {False: 2 * 5, True: 2 * 6}


@pytest.mark.parametrize("architecture", ["sit", "repa", "dit", "sd3", "sd3.5-medium", "sd3.5-large"])
def test_every_architecture_shares_steps(architecture):
    engine = engine_of(architecture, device="cpu")
    rules = [None, CFG(3.0), SkipLayer(2.0, (1,)), SGG(CFG(2.0), SkipLayer(1.0, (1, 2)), 0.5), CFG(2.0) + SkipLayer(0.5, (0,))]
    plans = [engine.plan(rule, steps=steps) for rule, steps in zip(rules * 2, (2, 3, 4, 5, 6, 7, 3, 2, 5, 4), strict=True)]
    loads = [Load(drawing_of(engine, plan, 100 + i), i // 3) for i, plan in enumerate(plans)]
    assert not any(why_alone(plan, engine.models) for plan in plans)
    scheduler = scheduler_of(engine, slots=6)
    for load, latents in zip(loads, draw_all(scheduler, loads), strict=True):
        single = alone(engine, load.drawing)
        assert float((latents - single).abs().max() / single.abs().max()) < ERROR
    assert scheduler.stats().ticks < sum(plan.calls for plan in plans) / 3
    scheduler.close()


@pytest.mark.parametrize("architecture", ["sd3", "sd3.5-medium", "sd3.5-large"])
def test_requests_with_a_second_text_share_forwards_with_others(architecture):
    """NAG at other calls, under other numbers, with weak branches that fork from its rows, and beside requests without it."""
    engine = engine_of(architecture, device="cpu")
    late = Window.steps(2, 4)
    rules = [
        NAG(3.0),
        CFG(2.0),
        NAG(5.0, tau=1.5, alpha=0.5, window=late) + CFG(2.0),
        NAG(4.0) + SkipLayer(1.0, (1,)) + PerturbedLayers(0.5, (2,), kind="attention_identity"),
        None,
        NAG(2.0, window=late) + CFG(3.0) + Rescale(0.7),
        NAG(3.0) + SkipLayer(2.0, (1,)).reused(2, order=1),
    ]
    plans = [
        engine.plan(rule, steps=steps)
        for rule, steps in zip(rules * 2, (2, 3, 5, 4, 6, 5, 5, 5, 4, 4, 2, 3, 6, 3), strict=True)
    ]
    assert not any(why_alone(plan, engine.models) for plan in plans)
    loads = [Load(drawing_of(engine, plan, 100 + i), i // 3) for i, plan in enumerate(plans)]
    for sizes in (None, SIZES):
        scheduler = scheduler_of(engine, slots=6, sizes=sizes)
        with counted_rows() as counted:
            drawn = draw_all(scheduler, loads)
        for load, latents in zip(loads, drawn, strict=True):
            single = alone(engine, load.drawing)
            assert float((latents - single).abs().max() / single.abs().max()) < ERROR, load.drawing.plan
        stats = scheduler.stats()
        assert stats.rows_used == sum(plan.cost.evaluations for plan in plans)
        assert stats.ticks < sum(plan.calls for plan in plans) / 3
        blocks = sum(plan.cost.blocks + plan.cost.text_blocks for plan in plans)  # counted by rows of text
        assert sum(counted) >= blocks and (sizes is not None or sum(counted) == blocks)
        scheduler.close()


def test_a_second_text_takes_the_room_of_a_row():
    """As many rows of text as there is room for, in a tick that is full of them."""
    engine = engine_of("sd3", device="cpu")
    plan = engine.plan(NAG(3.0) + SkipLayer(1.0, (1,)), steps=2)
    loads = [Load(drawing_of(engine, plan, i), 0) for i in range(6)]
    scheduler = scheduler_of(engine, slots=6, sizes=(1, 2, 3, 4))  # 8 rows: two requests of 2 rows with 2 texts each
    drawn = draw_all(scheduler, loads)
    for load, latents in zip(loads, drawn, strict=True):
        assert torch.allclose(latents, alone(engine, load.drawing), rtol=0, atol=ERROR)
    assert scheduler.stats().ticks == 2 * 3
    wide = scheduler_of(engine, slots=6, sizes=(1, 2, 3, 4, 6))
    draw_all(wide, loads)
    assert wide.stats().ticks == 2 * 2
    scheduler.close()
    wide.close()


def test_more_runs_than_a_tick_has_steps_for_wait():
    """Rows with one text and with two are groups of their own: together there is room for more of them than for steps."""
    engine = engine_of("sd3", device="cpu")
    plans = [engine.plan(rule, steps=2) for rule in [None] * 4 + [NAG(3.0)] * 2]
    loads = [Load(drawing_of(engine, plan, i), 0) for i, plan in enumerate(plans)]
    scheduler = scheduler_of(engine, slots=6, sizes=(1, 2, 3, 4))
    for load, latents in zip(loads, draw_all(scheduler, loads), strict=True):
        assert torch.allclose(latents, alone(engine, load.drawing), rtol=0, atol=ERROR)
    assert scheduler.stats().ticks >= 3
    scheduler.close()


def test_runs_of_two_sizes_are_under_way_together():
    engine = engine_of("sit", device="cpu")
    plans = [engine.plan(CFG(2.0), steps=4), engine.plan(CFG(2.0), steps=3, height=4, width=4)]
    loads = [Load(drawing_of(engine, plan, i), 0) for i, plan in enumerate(plans)]
    scheduler = scheduler_of(engine)
    for load, latents in zip(loads, draw_all(scheduler, loads), strict=True):
        assert latents.shape == load.drawing.start.state.shape
        assert torch.allclose(latents, alone(engine, load.drawing), rtol=0, atol=ERROR)
    assert scheduler.stats().ticks == 4
    scheduler.close()
