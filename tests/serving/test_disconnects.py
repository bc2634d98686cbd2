"""A client that goes gives its request up: nothing of it stays in a slot, in the queue or in a thread."""

import asyncio
import gc
import json

import pytest
from served import DRAW, counted, served

BODY = {"prompt": "3", "steps": 5}


class Connection:
    """A request to an application without a client between, whose connection a test closes when it likes."""

    def __init__(self, app, **fields):
        self.body, self.gone, self.sent = json.dumps(BODY | fields).encode(), asyncio.Event(), []
        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": DRAW,
            "raw_path": DRAW.encode(),
            "query_string": b"",
            "headers": headers,
        }
        scope |= {"scheme": "http", "server": ("test", 80), "client": ("test", 1), "root_path": "", "http_version": "1.1"}
        scope["asgi"] = {"version": "3.0", "spec_version": "2.3"}
        self.work = asyncio.ensure_future(app(scope, self.receive, self.send))

    async def receive(self):
        """The body, and then nothing until the client goes."""
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        """Keep what is sent."""
        self.sent.append(message)

    def status(self) -> int | None:
        """The status of the answer, None before it begins."""
        return self.sent[0]["status"] if self.sent else None


async def until(condition) -> None:
    """Let the event loop and its threads go on until a condition holds."""
    while not condition():
        await asyncio.sleep(0)


def drained(scheduler) -> bool:
    """Make calls of the network until none is left to make; whether nothing is in a slot or in the queue."""
    while scheduler.tick():
        pass
    stats = scheduler.stats()
    return (stats.running, stats.queued) == (0, 0)


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"stream": True}, {"stream": True, "n": 2, "progress": True}])
@pytest.mark.parametrize("ticks", [0, 1, 3])
def test_a_client_that_goes_in_the_queue_or_in_a_slot_cancels_its_pictures(by_hand, fields, ticks):
    async def work():
        async with served(by_hand, slots=2) as client:
            scheduler, count = client.serving.scheduler, fields.get("n", 1)
            connection = Connection(client._transport.app, **fields)
            await until(lambda: scheduler.stats().submitted == count)
            for _ in range(ticks):
                scheduler.tick()
            connection.gone.set()
            await connection.work
            assert drained(scheduler)
            return connection, counted(scheduler), await client.get("/health")

    connection, stats, health = asyncio.run(work())
    assert (stats.submitted, stats.cancelled, stats.finished) == (fields.get("n", 1), fields.get("n", 1), 0)
    assert connection.status() == (200 if fields.get("stream") else 499)
    assert health.status_code == 200


def test_a_stream_whose_client_goes_before_its_first_byte_is_given_up(by_hand):
    async def work():
        async with served(by_hand) as client:
            scheduler = client.serving.scheduler
            connection = Connection(client._transport.app, stream=True)
            connection.gone.set()
            await connection.work
            assert drained(scheduler)
            return counted(scheduler)

    stats = asyncio.run(work())
    assert (stats.submitted, stats.cancelled) == (1, 1)


def test_one_picture_that_fails_gives_up_the_others_of_its_request(by_hand, monkeypatch):
    async def work():
        async with served(by_hand, slots=4) as client:
            scheduler = client.serving.scheduler
            waiting = asyncio.ensure_future(client.draw(n=3))
            await until(lambda: scheduler.stats().queued == 3)
            scheduler.tick()
            first = next(iter(scheduler._running.values()))
            assert first.settle(error=FloatingPointError("call 1 of cond is not finite"))
            answer = await waiting
            assert drained(scheduler)
            return answer, counted(scheduler)

    answer, stats = asyncio.run(work())
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "call 1 of cond is not finite")
    assert stats.finished == 0


def test_pictures_that_the_server_gives_up_are_told_as_such(by_hand):
    async def work():
        async with served(by_hand) as client:
            scheduler = client.serving.scheduler
            waiting = [asyncio.ensure_future(client.draw(**fields)) for fields in ({}, {"stream": True})]
            await until(lambda: scheduler.stats().queued == 2)
            scheduler.close(drain=False)
            return [await answer for answer in waiting]

    plain, streamed = asyncio.run(work())
    assert (plain.status_code, plain.json()["error"]["code"]) == (503, "shutting_down")
    assert '"code": "shutting_down"' in streamed.text


def test_pictures_that_fail_together_leave_no_error_that_nobody_looked_at(engine):
    heard = []

    async def work():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["message"]))
        async with served(engine) as client:
            status = (await client.draw(n=4, deadline=1e-9)).status_code
        gc.collect()
        await asyncio.sleep(0)
        return status

    assert (asyncio.run(work()), heard) == (504, [])
