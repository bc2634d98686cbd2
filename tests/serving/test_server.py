"""A server on a socket: shutdown, connections that close, hundreds at once."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
from served import DRAW, counted, events_of, listening
from uvicorn.server import ServerState

from segue.serving.app import create_app
from segue.serving.server import Connection, bound_socket, make_server
from segue.serving.settings import Settings

JSON = {"prompt": "3", "steps": 4}


def stats_of(server):
    """The scheduler's statistics; None once the server has closed it."""
    scheduler = server.config.app.state.serving.scheduler
    return scheduler and scheduler.stats()


def test_what_was_accepted_is_finished_when_the_server_is_told_to_stop(engine):
    with listening(engine, slots=2) as (url, server), httpx.Client(base_url=url, timeout=None) as client:
        with client.stream("POST", DRAW, json=JSON | {"n": 3, "steps": 20, "stream": True, "progress": True}) as answer:
            lines = answer.iter_text()
            text = next(lines)  # it has begun, and one picture waits for a slot
            server.stop()
            text += "".join(lines)
        events = events_of(text)
        assert sum(event["type"] == "image_generation.completed" for event in events) == 3
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_a_connection_that_is_closed_cancels_its_picture(engine):
    heard = threading.Event()
    with listening(engine, slots=1) as (url, server):
        scheduler = server.config.app.state.serving.scheduler
        submit = scheduler.submit

        def submitted(*arguments, **options):
            request = submit(*arguments, **options)
            request.add_done_callback(lambda _: heard.set())
            return request

        scheduler.submit = submitted
        body = b'{"prompt": "3", "steps": 200}'
        host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST {DRAW} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            while stats_of(server).submitted == 0:
                pass
        assert heard.wait(60)
        answer = httpx.post(f"{url}{DRAW}", json=JSON, timeout=None)
        assert answer.status_code == 200
        stats = counted(scheduler)
    assert (stats.submitted, stats.cancelled, stats.finished, stats.failed) == (2, 1, 1, 0)


def test_what_is_no_http_is_answered_or_closed_and_the_server_lives(engine):
    with listening(engine) as (url, _):
        host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()
        for nonsense in (
            b"\x16\x03\x01\x02\x00\x01",
            b"GET / HTTP/9.9\r\n\r\n",
            b"A" * 100_000,
            b"POST / HTTP/1.1\r\n" + b"x: y\r\n" * 9000,
        ):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(nonsense)
                connection.shutdown(socket.SHUT_WR)
                try:
                    while connection.recv(1 << 16):
                        pass
                except ConnectionResetError:
                    pass
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_head_without_an_end_is_not_read_for_ever(engine):
    with listening(engine) as (url, _):
        host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()
        sent = 0
        with socket.create_connection((host, int(port))) as connection, pytest.raises(OSError):  # closed by the server
            while sent < 100 << 20:
                sent += connection.send(b"X-Header: " + b"x" * 60_000 if sent else b"GET / HTTP/1.1\r\nX: ")
        assert sent < 50 << 20
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_client_that_stops_reading_gives_its_pictures_up(engine, monkeypatch):
    def narrow(*place):
        """A socket whose connections the system takes little for."""
        bound = bound_socket(*place)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return bound

    monkeypatch.setattr("served.bound_socket", narrow)
    body = json.dumps(JSON | {"steps": 200, "n": 10, "stream": True, "partial_images": 32, "progress": True}).encode()
    with listening(engine, slots=10, send_seconds=1e-9) as (url, server), socket.socket() as connection:
        scheduler = server.config.app.state.serving.scheduler
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()
        connection.connect((host, int(port)))
        head = f"POST {DRAW} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        while stats_of(server).submitted < 10:
            pass
        stats = counted(scheduler)
    assert (stats.finished, stats.cancelled) == (0, 10)


class Played:
    """The transport and the clock of a connection; ``size`` bytes of its answer are not sent."""

    def __init__(self):
        self.size, self.aborted, self.high, self.timers = 0, False, None, []

    def get_extra_info(self, _):
        return None

    def set_write_buffer_limits(self, high):
        self.high = high

    def get_write_buffer_size(self):
        return self.size

    def abort(self):
        self.aborted = True

    def call_later(self, seconds, function, *arguments):
        timer = SimpleNamespace(seconds=seconds, function=lambda: function(*arguments), cancel=lambda: self.timers.clear())
        self.timers.append(timer)
        return timer

    def pass_time(self):
        """Let the next timer ring, after how many seconds it says."""
        timer = self.timers.pop()
        timer.function()
        return timer.seconds


@pytest.mark.parametrize(("reads", "kept"), [([1 << 16] * 3, True), ([1 << 20], True), ([1 << 16, 0], False), ([65535], False)])
def test_a_connection_is_kept_while_its_client_reads_enough(engine, reads, kept):
    played = Played()
    config = make_server(create_app(engine, Settings(send_seconds=7))).config
    connection = Connection(config, ServerState(), {}, played)
    connection.connection_made(played)
    played.size = 3 << 16 | 1
    connection.pause_writing()
    for read in reads:
        played.size = max(0, played.size - read)
        if not played.size:
            connection.resume_writing()
            break
        assert played.pass_time() == 7
    assert (played.aborted, played.high) == (not kept, 0)
    assert len(played.timers) == (kept and played.size > 0)


def test_a_second_ctrl_c_waits_for_no_connection(engine):
    """From Python 3.12 on a listener is closed when its connections are; here one that never is without them plays it."""
    with listening(engine, slots=1) as (url, server), httpx.Client(base_url=url, timeout=None) as client:
        (listener,) = server.servers

        class Late:
            def close(self):
                listener.close()

            async def wait_closed(self):
                while server.server_state.connections:
                    await asyncio.sleep(0)

        server.servers = [Late()]
        with client.stream("POST", DRAW, json=JSON | {"steps": 200, "stream": True, "progress": True}) as answer:
            lines = answer.iter_text()
            next(lines)
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                server.handle_exit(number, None)
            assert server.force_exit, "a later SIGTERM takes it back"
            with pytest.raises(httpx.TransportError):
                list(lines)


@contextmanager
def served_by_the_command(*options: str) -> Iterator[tuple[str, int]]:
    """The address and the number of a process that serves; at the end it is told to stop, and has nothing to say of it."""
    command = [sys.executable, "-m", "segue", "serve", "--port", "0", "--quiet", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield re.match(r"herbarium at (http://127\.0\.0\.1:\d+):", process.stdout.readline())[1], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")


def memory(process: int) -> int:
    """Bytes of a process that are in memory."""
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def wave(url: str, bodies: list) -> list[httpx.Response]:
    """The answers to requests that are sent at once, each over a connection of its own."""
    limits = httpx.Limits(max_connections=len(bodies), max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        return await asyncio.gather(*(client.post(DRAW, json=body) for body in bodies))


@pytest.mark.slow
def test_500_connections_at_once_are_drawn_or_refused_in_bounded_memory():
    """Each is answered with a picture, or with a refusal; a second wave needs no more memory."""
    hostile = ({"prompt": "x" * 1_000_000}, {"size": "99999x99999"}, {"model": "../../etc/passwd"}, {"evil": 1})
    bodies = [JSON | {"steps": 2} | ({} if place % 5 else hostile[place // 5 % 4]) for place in range(500)]
    with served_by_the_command("--slots", "4", "--queue", "16") as (url, process):
        asyncio.run(wave(url, bodies))
        before = memory(process)
        answers = asyncio.run(wave(url, bodies))
        after = memory(process)
        text = httpx.get(f"{url}/metrics").text
    statuses = [answer.status_code for answer in answers]
    assert statuses[::5] == [413, 400, 404, 400] * 25
    assert {*statuses} == {200, 400, 404, 413, 429} and statuses.count(200) >= 20
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
    assert all("\n" not in answer.json()["error"]["message"] for answer in answers if answer.status_code >= 400)
    assert all(f"segue_{name} 0.0" in text for name in ("failed_total", "running", "queued"))
    assert after - before < 32 << 20


@pytest.mark.slow
def test_the_command_serves_the_bundled_model_until_a_signal_and_ends_with_0():
    with served_by_the_command() as (url, _):
        answer = httpx.post(f"{url}{DRAW}", json=JSON, timeout=None)
    assert answer.status_code == 200
    assert answer.json()["segue"]["guidance"].startswith("sgg:")
