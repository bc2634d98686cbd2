"""The door before processes that may die: nothing that was accepted is lost without a word.  The processes are played."""

import asyncio
import gc
import json
import os
import random
import signal
import threading
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.types import Message

from segue.serving.ray_app import Replicas, ServedProcess, until_signal
from segue.serving.ray_command import replicas_of
from segue.serving.ray_door import ATTEMPTS, Readiness, door_app
from segue.serving.ray_metrics import joined_page
from segue.serving.refusals import Refusal
from segue.serving.settings import Settings

LETTERS = [b"data: %d\n\n" % number for number in range(5)]


def stand_in(lived: list[str]) -> FastAPI:
    """An application of one machine: it echoes, streams, waits for its client to go, and fails."""

    @asynccontextmanager
    async def lifespan(_):
        lived.append("began")
        yield
        lived.append("ended")

    app = FastAPI(lifespan=lifespan)

    @app.post("/echo")
    async def echo(body: dict, number: int = 0):
        return {"body": body, "number": number}

    @app.post("/stream")
    async def stream():
        return StreamingResponse(iter(LETTERS), media_type="text/event-stream")

    @app.post("/whole")
    async def whole():
        return StreamingResponse(iter(LETTERS), media_type="image/png")

    @app.post("/wait")
    async def wait():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            lived.append("left")

    return app


class Handle:
    """A Ray Serve handle whose processes do as a list says: None answers, a number dies after so many messages, else raises."""

    def __init__(self, *fates, told=()):
        self.fates, self.lived, self.asked, self.told = list(fates), [], 0, told

    def options(self, *, stream, method_name):
        assert stream and method_name == "answer"
        return self

    def broadcast(self, method_name, *_):
        self.asked += 1
        return SimpleNamespace(results_async=partial(self.results, method_name))

    async def results(self, method_name, timeout_s, return_exceptions):
        assert method_name in ("state", "page") and timeout_s > 0 and return_exceptions
        await asyncio.sleep(0)
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    def remote(self, scope, body):
        self.asked += 1
        return Answer(self, self.fates.pop(0) if self.fates else None, scope, body)


class Played(ServedProcess):
    """A process that Ray does not end."""

    def __del__(self):
        pass


class Answer:
    """A stream of messages that can be cancelled."""

    def __init__(self, handle, fate, scope, body):
        self.messages = self._messages(handle, fate, scope, body)

    async def _messages(self, handle, fate, scope, body):
        if isinstance(fate, Exception):
            raise fate
        drawing = Played.__new__(Played)
        await drawing.__init__(lambda _: stand_in(handle.lived), Settings())
        count = 0
        try:
            async for message in drawing.answer(scope, body):
                if count == fate:
                    raise ActorDiedError()
                yield message
                count += 1
        finally:
            await ServedProcess.__del__(drawing)

    def __aiter__(self):
        return self.messages

    def cancel(self):
        self.task = asyncio.ensure_future(self.messages.aclose())


def asked(handle, path, body=b"{}", gone: float | None = None, settings=None, headers=(), method="POST"):
    """The messages of the door's answer; the client goes where ``gone`` says so."""

    async def work() -> list[Message]:
        first, sent = [{"type": "http.request", "body": body, "more_body": False}], []

        async def receive():
            if first:
                return first.pop()
            if gone is None:
                await asyncio.get_running_loop().create_future()
            while not handle.lived:
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        path_only, _, query = path.partition("?")
        head = [(b"content-type", b"application/json"), *headers]
        scope = {"type": "http", "method": method, "path": path_only, "query_string": query.encode(), "headers": head}
        scope |= {"raw_path": path_only.encode(), "root_path": "", "scheme": "http", "http_version": "1.1"}
        await door_app(handle, settings or Settings())(scope | {"client": ("1.2.3.4", 5), "server": None}, receive, send)
        await asyncio.sleep(0)
        return sent

    sent = asyncio.run(work())
    if not sent:
        return None, b"", {}
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], body, {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_an_answer_is_that_of_the_application(seed):
    number = random.Random(seed).randrange(1000)
    status, body, headers = asked(Handle(), f"/echo?number={number}", json.dumps({"a": "ü"}).encode())
    assert (status, json.loads(body)) == (200, {"body": {"a": "ü"}, "number": number})
    assert headers["content-type"] == "application/json"
    assert asked(Handle(), "/nowhere")[0] == 404


@pytest.mark.parametrize("death", (ActorDiedError(), ActorUnavailableError("away", b"1" * 16), 0))
def test_what_dies_before_its_answer_is_asked_of_another(death):
    for deaths in range(ATTEMPTS):
        handle = Handle(*[death] * deaths)
        assert asked(handle, "/echo?number=7")[:2] == (200, b'{"body":{},"number":7}')
        assert handle.asked == deaths + 1


def test_a_request_that_kills_every_process_is_told_so():
    handle = Handle(*[ActorDiedError()] * (ATTEMPTS + 1))
    status, body, _ = asked(handle, "/echo")
    assert (status, json.loads(body)["error"]["code"], handle.asked) == (503, "died", ATTEMPTS)
    assert "3 processes died on this request" in json.loads(body)["error"]["message"]


def test_a_stream_whose_process_dies_ends_with_an_error_event():
    status, body, _ = asked(Handle(3), "/stream")
    assert status == 200 and body.startswith(LETTERS[0] + LETTERS[1] + b"event: error\ndata: ")
    assert "died; send it again" in json.loads(body.split(b"data: ")[-1])["error"]["message"]


def test_any_other_answer_that_has_begun_ends_with_its_connection():
    with pytest.raises(ConnectionError, match="died within its answer"):
        asked(Handle(3), "/whole")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    ((BackPressureError(1, 1), 429, "queue_full"), (DeploymentUnavailableError("drawing"), 503, "unavailable")),
)
def test_what_no_process_takes_is_refused_and_may_come_again(error, status, code):
    found, body, headers = asked(Handle(error), "/echo")
    assert (found, json.loads(body)["error"]["code"], headers["retry-after"]) == (status, code, "1")


def test_a_client_that_goes_takes_its_request_with_it():
    handle = Handle()
    assert asked(handle, "/wait", gone=True)[0] is None
    assert handle.lived == ["began", "left", "ended"] and handle.asked == 1


def test_keys_are_asked_for_at_the_door():
    handle, settings = Handle(), Settings(keys=("k" * 16,))
    assert asked(handle, "/echo", settings=settings)[0] == 401 and handle.asked == 0
    assert asked(handle, "/echo", settings=settings, headers=[(b"authorization", b"Bearer " + b"k" * 16)])[0] == 200


def test_the_page_of_metrics_has_the_numbers_of_every_process():
    page = '# HELP a_total b\n# TYPE a_total counter\na_total{{x="1"}} {}\n# HELP c d\n# TYPE c gauge\nc {}\n'
    lines = joined_page([("one", page.format(3, 4)), ("two", page.format(5, 6))]).decode().splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# HELP a_total b",
        "# TYPE a_total counter",
        "# HELP c d",
        "# TYPE c gauge",
    ]
    assert {line for line in lines if not line.startswith("#")} == {
        'a_total{replica="one",x="1"} 3.0',
        'a_total{replica="two",x="1"} 5.0',
        'c{replica="one"} 4.0',
        'c{replica="two"} 6.0',
    }


def test_health_is_told_at_the_door_whatever_the_processes_do():
    handle = Handle(BackPressureError(1, 1), told=DeploymentUnavailableError("drawing"))
    assert asked(handle, "/health", method="GET")[:2] == (200, b'{"status":"ok"}')
    assert handle.asked == 0


@pytest.mark.parametrize(
    ("told", "status", "state"),
    [
        (["starting", "ready"], 200, "ready"),
        (["starting", ActorDiedError()], 503, "starting"),
        (["broken"], 503, "broken"),
        ([ActorDiedError()], 503, "unavailable"),
        (DeploymentUnavailableError("drawing"), 503, "unavailable"),
        (TimeoutError(), 200, "ready"),
    ],
)
def test_the_door_is_ready_where_a_process_is_or_all_have_their_hands_full(told, status, state):
    handle = Handle(BackPressureError(1, 1), told=told)
    found, body, _ = asked(handle, "/ready", method="GET")
    assert (found, json.loads(body)) == (status, {"status": state})


def test_many_that_ask_whether_the_door_is_ready_are_one_question_to_the_processes():
    async def work():
        handle = Handle(told=["ready"])
        readiness = Readiness(handle)
        states = await asyncio.gather(*(readiness.state() for _ in range(63)))
        return states, handle.asked, await readiness.state(), handle.asked

    assert asyncio.run(work()) == (["ready"] * 63, 1, "ready", 2)


@pytest.mark.parametrize("told", (TimeoutError(), DeploymentUnavailableError("drawing")))
def test_metrics_that_no_process_tells_are_no_fault(told):
    status, body, headers = asked(Handle(told=told), "/metrics", method="GET")
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, "unavailable", "1")


def test_replicas_are_a_number_or_a_range():
    assert (replicas_of(), replicas_of("3"), replicas_of("1-8", gpus=0.5)) == (
        Replicas(1, 1),
        Replicas(3, 3),
        Replicas(1, 8, gpus=0.5),
    )
    for text, words in (("many", "--replicas is a number, or a range such as 1-8, got 'many'"), ("0", "got 0 to 0")):
        with pytest.raises(ValueError, match=words):
            replicas_of(text)
    with pytest.raises(ValueError, match="gpus of a replica must be a number from 0, got -1"):
        replicas_of("1", gpus=-1.0)


@pytest.mark.parametrize("error", (BackPressureError(1, 1), DeploymentUnavailableError("drawing"), ActorDiedError()))
def test_nothing_of_a_refused_request_is_kept(error):
    """An exception that is raised again and again holds the frames of every raise, and with them every body."""
    asked(Handle(*[error] * ATTEMPTS), "/echo", json.dumps({"a": "b" * 1000}).encode())
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, Refusal)] == []


def test_a_second_signal_does_what_it_did_before_the_first():
    heard = []
    original = signal.signal(signal.SIGTERM, lambda *_: heard.append("as before"))
    own = signal.getsignal(signal.SIGTERM)

    def tell():
        while signal.getsignal(signal.SIGTERM) is own:
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        thread = threading.Thread(target=tell)
        thread.start()
        until_signal()
        thread.join()
        assert heard == []
        signal.raise_signal(signal.SIGTERM)
        assert heard == ["as before"]
    finally:
        signal.signal(signal.SIGTERM, original)


def test_a_process_says_of_itself_what_its_server_says():
    async def told(app):
        process = Played.__new__(Played)
        await process.__init__(lambda _: app, Settings())
        return await process.state()

    serving = stand_in([])
    serving.state.serving = SimpleNamespace(state="broken")
    assert [asyncio.run(told(app)) for app in (stand_in([]), serving)] == ["ready", "broken"]
