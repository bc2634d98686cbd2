"""What becomes of requests: cancelled, late, refused, broken, too many at once; nothing is lost and nobody else notices."""

import queue
import random
import threading
from concurrent.futures import CancelledError, wait

import pytest
import torch
from lone_requests import alone, drawing_of
from tiny_models import tiny_sit

from segue import CFG, Branch, Engine, Exit, Guidance, Rescale, SkipLayer, Term, Weight
from segue.engine.running.sampler import NonFiniteError
from segue.engine.scheduling import scheduler as scheduler_module
from segue.engine.scheduling.drawing import Drawing, Start
from segue.engine.scheduling.errors import DeadlineError, MemoryLimitError, QueueFullError, SchedulerClosedError
from segue.engine.scheduling.lane_runs import ProgramRun
from segue.engine.scheduling.scheduler import StepScheduler

STEPS = 4


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(channels=3), device="cpu")


@pytest.fixture
def stepped(engine):
    """Makes schedulers whose ticks are made by hand."""
    made = []

    def make(**options) -> StepScheduler:
        made.append(StepScheduler(engine, engine.drawing, start=False, **options))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close(drain=False)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr(scheduler_module.time, "monotonic", lambda: now[0])
    return now


def sampled(engine, label, rule, seed, steps=STEPS):
    return engine.sample([label], rule, seeds=[seed], steps=steps).latents


def test_a_request_is_the_run_that_sample_makes(engine):
    with engine.scheduler(slots=2) as scheduler:
        run = scheduler.submit(3, "cfg:scale=2", seed=7, steps=STEPS).result(timeout=60)
    assert torch.allclose(run.latents, sampled(engine, 3, CFG(2.0), 7), rtol=0, atol=1e-5)
    assert (run.labels, run.seeds, run.calls) == ((3,), (7,), STEPS)


def test_progress_comes_in_order_with_the_pictures_that_were_asked_for(stepped, engine):
    scheduler, heard = stepped(), []
    request = scheduler.submit(1, CFG(2.0), seed=1, steps=5, previews=2)
    request.on_progress(heard.append)
    while scheduler.tick():
        pass
    assert [event.call for event in heard] == [1, 2, 3, 4, 5]
    assert [event.picture is not None for event in heard] == [False, True, False, True, False]
    assert [event.sigma for event in heard] == request.plan.sigmas.tolist()
    told = list(request.events(timeout=60))  # for who comes late, the newest picture alone was kept
    assert [event.call for event in told] == [1, 2, 3, 4, 5]
    assert [event.picture for event in told] == [None, None, None, heard[3].picture, None]


def test_a_reader_who_hears_nothing_for_too_long_is_told(stepped):
    request = stepped().submit(1, seed=1, steps=5)
    with pytest.raises(queue.Empty):
        next(request.events(timeout=0.01))


def test_a_listener_that_comes_with_a_request_hears_of_every_call_from_any_thread(engine):
    heard = []
    with engine.scheduler() as scheduler:
        request = scheduler.submit(1, seed=1, steps=5, listener=heard.append)
    assert [event.call for event in heard] == [1, 2, 3, 4, 5]
    assert heard == list(request.events(timeout=60))


def test_a_stream_ends_with_the_run_and_leaving_it_cancels(engine):
    with engine.scheduler(slots=2) as scheduler:
        *events, run = scheduler.stream(3, "cfg:scale=2", seed=7, steps=STEPS)
        assert [event.call for event in events] == [1, 2, 3, 4]
        assert torch.allclose(run.latents, sampled(engine, 3, CFG(2.0), 7), rtol=0, atol=1e-5)
        for _ in scheduler.stream(3, steps=50):
            break
    assert (scheduler.stats().finished, scheduler.stats().cancelled) == (1, 1)
    with pytest.raises(SchedulerClosedError):
        scheduler.stream(0)


def test_a_preview_is_the_clean_estimate_of_a_step_of_euler(stepped, engine):
    shown = []
    drawing = drawing_of(engine, engine.plan(CFG(2.0), steps=3), 5)
    seen = Drawing(drawing.plan, 5, drawing.begin, lambda latents: latents, lambda latents: shown.append(latents) or latents)
    scheduler = stepped()
    scheduler._draw = lambda what, guidance: seen
    request = scheduler.submit(0, previews=1)
    states = []
    while scheduler.tick():
        states += [run.x.clone() for run in scheduler._running]
    request.result(timeout=60)
    sigma = [*drawing.plan.sigmas, 0.0]
    velocity = (states[0] - drawing.start.state) / (sigma[1] - sigma[0])
    assert torch.allclose(shown[0], drawing.start.state - sigma[0] * velocity, rtol=0, atol=1e-5)


def test_a_cancelled_request_leaves_at_the_next_tick_and_the_others_stay_what_they_are(stepped, engine):
    scheduler = stepped(slots=3, queue=2)
    requests = [scheduler.submit(label, CFG(2.0), seed=label, steps=STEPS) for label in range(4)]
    scheduler.tick()
    assert scheduler.stats().running == 3 and scheduler.stats().queued == 1
    assert requests[0].cancel() and requests[3].cancel()
    scheduler.tick()
    assert scheduler.stats().running == 2 and scheduler.stats().queued == 0
    while scheduler.tick():
        pass
    for label in (1, 2):
        assert torch.allclose(
            requests[label].result(timeout=60).latents, sampled(engine, label, CFG(2.0), label), rtol=0, atol=1e-5
        )
    for label in (0, 3):
        with pytest.raises(CancelledError):
            requests[label].result(timeout=0)
    stats = scheduler.stats()
    assert (stats.finished, stats.cancelled, stats.submitted) == (2, 2, 4)


def test_a_deadline_ends_a_request_in_the_queue_and_one_that_runs(stepped, clock):
    scheduler = stepped(slots=1)
    running = scheduler.submit(0, steps=STEPS, deadline=5)
    waiting = scheduler.submit(1, steps=STEPS, deadline=3)
    patient = scheduler.submit(2, steps=1)
    scheduler.tick()
    clock[0] += 4
    scheduler.tick()
    with pytest.raises(DeadlineError, match="not done after 3 s"):
        waiting.result(timeout=0)
    clock[0] += 2
    while scheduler.tick():
        pass
    with pytest.raises(DeadlineError, match="not done after 5 s"):
        running.result(timeout=0)
    assert patient.result(timeout=60).calls == 1
    assert scheduler.stats().expired == 2


def test_a_deadline_that_has_passed_says_the_seconds_that_were_given(stepped, engine, clock):
    """Also where planning and encoding took some of them, or all."""
    scheduler, draw = stepped(), engine.drawing

    def slow(what, guidance, **options):
        clock[0] += 2
        return draw(what, guidance, **options)

    scheduler._draw = slow
    for seconds, told in ((3, "3 s"), (1e-9, "1e-09 s")):
        request = scheduler.submit(0, steps=1, deadline=seconds)
        clock[0] += 1
        scheduler.tick()
        with pytest.raises(DeadlineError, match=f"not done after {told}$"):
            request.result(timeout=0)


def test_a_full_queue_refuses_and_a_free_place_takes_again(stepped):
    scheduler = stepped(slots=1, queue=1)
    first = [scheduler.submit(0, steps=1), scheduler.submit(1, steps=1)]
    with pytest.raises(QueueFullError, match="the queue holds 1"):
        scheduler.submit(2, steps=1)
    scheduler.tick()
    scheduler.submit(2, steps=1)
    while scheduler.tick():
        pass
    assert all(request.result(timeout=60) for request in first)
    assert scheduler.stats().refused == 1


def test_without_a_queue_requests_find_a_free_slot_or_are_refused(stepped):
    scheduler = stepped(slots=2, queue=0)
    requests = [scheduler.submit(label, steps=1) for label in range(2)]
    with pytest.raises(QueueFullError, match="the queue holds 0"):
        scheduler.submit(2, steps=1)
    scheduler.tick()
    assert all(request.result(timeout=60) for request in requests)
    with pytest.raises(ValueError, match="queue must be 0 or more, got -1"):
        stepped(queue=-1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"what": 99}, ValueError, "label 99 is out of range"),
        ({"what": [1, 2]}, TypeError, "whole numbers or names"),
        ({"guidance": "cfg:scale=nan"}, ValueError, "must be finite, got nan"),
        ({"guidance": "no-such-rule"}, ValueError, "no-such-rule"),
        ({"steps": 0}, ValueError, "steps"),
        ({"seed": -1}, ValueError, "seed"),
        ({"height": 5}, ValueError, "5"),
        ({"deadline": 0}, ValueError, "deadline must be a number of seconds above 0"),
        ({"previews": -1}, ValueError, "previews must be 0 or more"),
        ({"negative_prompt": "no"}, TypeError, "negative_prompt"),
        ({"stepps": 3}, TypeError, "stepps"),
        ({"height": 2**20, "width": 2**20}, MemoryLimitError, "GiB"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_takes_no_place(stepped, options, error, message):
    scheduler = stepped()
    with pytest.raises(error, match=message) as refused:
        scheduler.submit(**({"what": 0} | options))
    assert "\n" not in str(refused.value)
    stats = scheduler.stats()
    assert (stats.queued, stats.submitted, stats.refused, scheduler._coming) == (0, 0, 1, 0)


def test_a_broken_request_hurts_no_other(stepped, engine):
    """One has a state that is no number, one a rule that raises in the middle of its run."""
    scheduler = stepped()
    healthy = scheduler.submit(1, CFG(2.0), seed=1, steps=STEPS)
    plan = engine.plan(CFG(2.0) + Rescale(0.5), steps=STEPS)
    good = drawing_of(engine, plan, 2)
    poisoned = Drawing(plan, 2, lambda: Start(good.start.conditions, good.start.state * float("nan")), good.finished, None)
    undrawable = Drawing(plan, 2, good.begin, lambda latents: 1 / 0, None)
    by_hand = [poisoned, undrawable, good]
    scheduler._draw = lambda what, guidance: by_hand[what]
    bad, odd, raising = (scheduler.submit(index) for index in range(3))
    scheduler.tick()
    (run,) = [run for run, request in scheduler._running.items() if request is raising]
    assert isinstance(run, ProgramRun)
    run.step = lambda outputs: 1 / 0
    while scheduler.tick():
        pass
    with pytest.raises(NonFiniteError, match=f"not finite after its {STEPS} calls"):
        bad.result(timeout=60)
    for request in (odd, raising):
        with pytest.raises(ZeroDivisionError):
            request.result(timeout=60)
    assert torch.allclose(healthy.result(timeout=60).latents, sampled(engine, 1, CFG(2.0), 1), rtol=0, atol=1e-5)
    assert scheduler.stats().failed == 3


def test_a_latent_that_is_no_number_stays_with_its_request(stepped, engine):
    """Linear rules share one sum: the first row is the broken one's, and others have fewer branches, or padding."""
    scheduler = stepped(sizes=(4, 16))
    plan = engine.plan(CFG(2.0), steps=STEPS)
    good = drawing_of(engine, plan, 2)
    start = Start(good.start.conditions, good.start.state * float("nan"))
    drawings = [Drawing(plan, 2, lambda: start, good.finished, None), drawing_of(engine, engine.plan(steps=STEPS), 3), good]
    scheduler._draw = lambda what, guidance: drawings[what]
    bad, unguided, guided = (scheduler.submit(index) for index in range(3))
    while scheduler.tick():
        pass
    with pytest.raises(NonFiniteError):
        bad.result(timeout=60)
    for request, drawing in ((unguided, drawings[1]), (guided, good)):
        assert torch.allclose(request.result(timeout=60), alone(engine, drawing), rtol=0, atol=1e-5)
    assert torch.isfinite(scheduler._slots.lanes[0].states).all()


def test_those_who_wait_for_several_hear_of_a_cancelled_one(stepped):
    scheduler = stepped()
    request = scheduler.submit(0, steps=1)
    request.cancel()
    assert wait([request], timeout=60).done == {request}


def test_more_early_exits_than_a_forward_reads_take_turns(stepped, engine):
    """Each run reads two exits, and twelve of them more than the largest size holds."""
    scheduler = stepped(slots=12)
    rule = Guidance(
        (
            Term(Branch("cond", Exit(2)), Weight(0.5)),
            Term(Branch("uncond", Exit(2)), Weight(0.25)),
        )
    )
    requests = [scheduler.submit(i % 6, rule, seed=i, steps=2) for i in range(12)]
    while scheduler.tick():
        pass
    for i, request in enumerate(requests):
        assert torch.allclose(request.result(timeout=60).latents, sampled(engine, i % 6, rule, i, 2), rtol=0, atol=1e-5)
    assert scheduler.stats().ticks > 2


def test_more_kinds_of_rows_than_a_tick_has_take_turns(stepped, engine):
    """Seven rules that perturb other layers each: four kinds a tick, and nobody waits two ticks in a row."""
    scheduler = stepped()
    rules = [SkipLayer(1.0, layers) for layers in ((0,), (1,), (2,), (3,), (0, 1), (0, 2), (1, 2))]
    requests = [scheduler.submit(i % 6, rule, seed=i, steps=STEPS) for i, rule in enumerate(rules)]
    calls = {}
    while scheduler.tick():
        now = {run: run.call for run in scheduler._running}
        waited = [run for run, call in now.items() if calls.get(run) == call]
        assert len(waited) <= 3 and not set(waited) & set(calls.get("waited", ()))
        calls = now | {"waited": waited}
    for i, (request, rule) in enumerate(zip(requests, rules, strict=True)):
        assert torch.allclose(request.result(timeout=60).latents, sampled(engine, i % 6, rule, i), rtol=0, atol=1e-5)
    assert STEPS < scheduler.stats().ticks <= 2 * STEPS


def test_closing_lets_accepted_requests_finish_and_takes_no_more(engine):
    scheduler = engine.scheduler(slots=2)
    requests = [scheduler.submit(i, steps=2, seed=i) for i in range(6)]
    scheduler.close()
    assert all(request.result(timeout=0).calls == 2 for request in requests)
    with pytest.raises(SchedulerClosedError, match="takes no more requests"):
        scheduler.submit(0)
    assert (scheduler.stats().submitted, scheduler.stats().refused) == (6, 1)


def test_closing_without_draining_cancels(engine):
    scheduler = engine.scheduler(slots=1)
    requests = [scheduler.submit(0, steps=50, seed=i) for i in range(3)]
    scheduler.close(drain=False)
    assert all(request.done() for request in requests)
    assert scheduler.stats().finished + scheduler.stats().cancelled == 3


def test_a_fault_of_the_scheduler_itself_leaves_nobody_waiting(engine, monkeypatch):
    scheduler = engine.scheduler()
    monkeypatch.setattr(scheduler._slots, "tick", lambda: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with pytest.raises(ZeroDivisionError):
        scheduler.submit(0, steps=2).result(timeout=60)
    with pytest.raises(SchedulerClosedError):
        while True:  # until the thread has ended
            scheduler.submit(0, steps=2).exception(timeout=60)
    scheduler.close()


def test_a_slot_that_cannot_be_left_loses_no_request(engine, monkeypatch):
    scheduler = engine.scheduler()
    monkeypatch.setattr(scheduler._slots, "leave", lambda run: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    requests = [scheduler.submit(0, steps=steps) for steps in (1, 3)]
    for request in requests:
        with pytest.raises(ZeroDivisionError):
            request.result(timeout=60)
    assert not scheduler.alive and scheduler.stats().failed == 2
    scheduler.close()


class DeviceFault(Exception):
    """As of a device that answers no more."""


def broken(*_):
    raise DeviceFault


@pytest.mark.parametrize("fate", ["failed", "expired", "cancelled"])
def test_every_request_is_counted_once_where_the_device_fails_while_it_ends(stepped, clock, monkeypatch, fate):
    """Its step fails, or it was given up; then its state cannot be read either, and the scheduler ends all that is left."""
    scheduler = stepped(slots=2)
    first, second = scheduler.submit(0, steps=STEPS, deadline=9), scheduler.submit(1, steps=STEPS)
    waiting = scheduler.submit(2, steps=STEPS)
    scheduler.tick()
    monkeypatch.setattr(torch.Tensor, "clone", broken)
    if fate == "failed":
        monkeypatch.setattr(scheduler._slots.lanes[0], "tick", broken)
    if fate == "expired":
        clock[0] += 10
    if fate == "cancelled":
        first.cancel()
    with pytest.raises(DeviceFault) as fault:
        scheduler.tick()
    scheduler._give_up(fault.value)
    monkeypatch.undo()
    scheduler.close()
    scheduler.close()
    stats = scheduler.stats()
    assert stats.finished + stats.cancelled + stats.expired + stats.failed == stats.submitted == 3
    assert all(request.done() for request in (first, second, waiting))
    assert stats.cancelled == (fate == "cancelled")


def test_closing_twice_counts_nobody_twice(stepped, monkeypatch):
    """Where a slot cannot be left the first time."""
    scheduler = stepped()
    requests = [scheduler.submit(i, steps=STEPS) for i in range(3)]
    scheduler.tick()
    monkeypatch.setattr(scheduler._slots, "leave", broken)
    with pytest.raises(DeviceFault):
        scheduler.close(drain=False)
    scheduler.close(drain=False)
    assert all(request.done() for request in requests)
    assert scheduler.stats().cancelled == scheduler.stats().submitted == 3


def test_a_thousand_requests_from_many_threads_with_everything_that_goes_wrong(engine):
    """Cancelled, late, refused and bad ones among them: every accepted one ends, every picture is right, nothing is left."""
    scheduler = engine.scheduler(slots=4, queue=12)
    rules = [None, CFG(2.0), SkipLayer(1.0, (1,)), CFG(2.0) + SkipLayer(0.5, (2,))]
    expected = {(i, r): sampled(engine, i, rules[r], 1000 + i, 2) for i in range(2) for r in range(len(rules))}
    outcomes: queue.SimpleQueue[str] = queue.SimpleQueue()

    def client(number: int) -> None:
        rng = random.Random(number)
        for _ in range(125):
            label, rule = rng.randrange(2), rng.randrange(len(rules))
            fate = rng.choice(("draw", "draw", "draw", "cancel", "late", "bad"))
            try:
                options = {"deadline": 1e-9} if fate == "late" else {}
                request = scheduler.submit(99 if fate == "bad" else label, rules[rule], seed=1000 + label, steps=2, **options)
                if fate == "cancel":
                    request.cancel()
                result = request.result(timeout=120).latents
                right = torch.allclose(result, expected[label, rule], rtol=0, atol=1e-5)
                outcomes.put("right" if right else "wrong")
            except (CancelledError, DeadlineError, QueueFullError, ValueError) as error:
                outcomes.put(type(error).__name__)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    found = [outcomes.get() for _ in range(1000)]
    scheduler.close()
    stats = scheduler.stats()
    assert found.count("wrong") == 0 and found.count("right") > 200
    assert stats.finished + stats.cancelled + stats.expired + stats.failed == stats.submitted
    assert (stats.failed, stats.queued, stats.running) == (0, 0, 0)
    assert stats.refused == found.count("ValueError") + found.count("QueueFullError")
    (lane,) = scheduler._slots.lanes
    assert lane.free == 4 and not lane.states.any()
