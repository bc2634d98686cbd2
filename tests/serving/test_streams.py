"""Streams: events in their order, previews, progress, failures as events, and signs of life."""

import asyncio
import weakref
from concurrent.futures import Future

import pytest
from served import counted, events_of, picture_of, run

from segue.engine.scheduling.request import Progress
from segue.serving.events import ALIVE, COMPLETED, ERROR, PARTIAL, PROGRESS, Events, Inbox, previews_every
from segue.serving.pending import Pending
from segue.serving.schemas import ImageRequest


def test_a_stream_ends_with_the_picture_of_the_plain_answer(engine):
    async def work(client):
        plain = (await client.draw(seed=9, steps=5)).json()
        return plain, await client.draw(seed=9, steps=5, stream=True)

    plain, streamed = run(work, engine)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    (event,) = events_of(streamed.text)
    assert event["type"] == COMPLETED
    assert picture_of(event).tobytes() == picture_of(plain["data"][0]).tobytes()
    assert {name: event[name] for name in ("seed", "size", "output_format", "segue")} == {
        "seed": 9,
        "size": plain["size"],
        "output_format": "png",
        "segue": plain["segue"],
    }


def test_progress_names_every_call_and_previews_come_between(engine):
    async def work(client):
        return events_of((await client.draw(seed=9, steps=7, stream=True, partial_images=3, progress=True)).text)

    events = run(work, engine)
    progress = [event for event in events if event["type"] == PROGRESS]
    assert [event["call"] for event in progress] == [1, 2, 3, 4, 5, 6, 7]
    assert {(event["calls"], event["steps"]) for event in progress} == {(7, 7)}
    levels = [event["sigma"] for event in progress]
    assert levels == sorted(levels, reverse=True) and levels[0] == 1
    partial = [event for event in events if event["type"] == PARTIAL]
    assert [event["partial_image_index"] for event in partial] == list(range(len(partial)))
    assert 1 <= len(partial) <= 3, "a preview may be overtaken by the next, the last one by none"
    assert {picture_of(event).size for event in partial} == {(32, 32)}
    assert events[-1]["type"] == COMPLETED and len(events) == 7 + len(partial) + 1


def test_several_pictures_of_a_stream_are_told_apart(engine):
    async def work(client):
        return events_of((await client.draw(seed=3, n=3, stream=True, partial_images=1)).text)

    events = run(work, engine)
    completed = {event["index"]: event["seed"] for event in events if event["type"] == COMPLETED}
    assert completed == {0: 3, 1: 4, 2: 5}
    assert sorted(event["index"] for event in events if event["type"] == PARTIAL) == [0, 1, 2]


def test_a_failure_after_the_first_byte_is_an_event_and_the_last(engine):
    async def work(client):
        answer = await client.draw(stream=True, progress=True, deadline=1e-9)
        return answer.status_code, events_of(answer.text), counted(client.serving.scheduler)

    status, events, stats = run(work, engine)
    assert (status, [event["error"]["code"] for event in events]) == (200, ["deadline"])
    assert (stats.expired, stats.running, stats.queued) == (1, 0, 0)


@pytest.mark.parametrize("calls", [1, 2, 3, 7, 28, 55])
@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 12, 32])
def test_previews_are_at_most_as_many_as_wanted_and_never_of_the_last_call(calls, wanted):
    every = previews_every(calls, wanted)
    made = [call for call in range(1, calls) if every and call % every == 0]
    assert len(made) <= wanted
    if wanted == 1 and calls > 1:
        assert len(made) == 1


async def at_once(function, *arguments):
    """What a pool would run, here."""
    return function(*arguments)


def ended(run) -> Future:
    """A request that has ended with a run."""
    request = Future()
    request.set_result(run)
    return request


def test_a_stream_that_hears_nothing_gives_signs_of_life():
    async def work():
        request, inbox = ended("run"), Inbox()
        made = {"output_format": "png"}, ImageRequest(prompt="3"), at_once, lambda run: {"made": run}
        frames = Events(Pending([request]), inbox, *made).frames(heartbeat=1e-9)
        silent = [await anext(frames) for _ in range(3)]
        inbox.put(0, request)
        await asyncio.sleep(0)
        heard = [text async for text in frames]
        return silent, [text for text in heard if text != ALIVE]

    silent, heard = asyncio.run(work())
    assert silent == [ALIVE] * 3
    assert [event["made"] for event in events_of("".join(heard))] == ["run"]


def test_a_fault_within_a_stream_is_an_event_that_tells_nothing_of_the_inside(engine, monkeypatch):
    async def work(client):
        monkeypatch.setattr(client.serving, "picture", lambda *_: 1 / 0)
        return (await client.draw(stream=True)).text

    events = events_of(run(work, engine))
    assert [event["error"]["code"] for event in events] == ["internal"]
    assert ERROR == "error"


def test_news_for_a_loop_that_has_ended_is_dropped():
    async def inbox():
        return Inbox()

    asyncio.run(inbox()).put(0, "late")


def heard(call, picture):
    return Progress(call, 9, call, 9, 0.5, picture)


def test_of_each_picture_the_newest_preview_alone_waits_for_a_client_that_reads_slowly():
    async def work():
        inbox = Inbox()

        async def read(count):
            news = [await inbox.next(60) for _ in range(count)]
            return [(one.place, one.said.call, one.said.picture) for one in news]

        for place, call, picture in ((0, 1, "a"), (1, 1, "b"), (0, 2, None), (0, 3, "c"), (0, 4, "d"), (1, 2, None)):
            inbox.put(place, heard(call, picture))
        late = await read(6)
        inbox.put(0, heard(5, "e"))
        prompt = await read(1)
        inbox.put(0, heard(6, "f"))
        return late, prompt + await read(1)

    late, prompt = asyncio.run(work())
    assert late == [(0, 1, None), (1, 1, "b"), (0, 2, None), (0, 3, None), (0, 4, "d"), (1, 2, None)]
    assert prompt == [(0, 5, "e"), (0, 6, "f")], "a client that keeps up misses none"


def test_a_picture_that_was_answered_is_not_kept_until_the_others_are():
    class Run:
        pass

    async def work():
        runs, inbox = [Run(), Run()], Inbox()
        alive, pending = [weakref.ref(run) for run in runs], Pending([ended(run) for run in runs])
        events = Events(pending, inbox, {}, ImageRequest(prompt="3", n=2), at_once, lambda run: {"seed": 0})
        del runs
        inbox.put(1, pending.requests[1])
        frames = events.frames(heartbeat=60)
        await anext(frames)
        pending.cancel()
        return [run() is not None for run in alive]

    assert asyncio.run(work()) == [True, False]
