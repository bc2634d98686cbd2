"""A server on a socket: shutdown, connections that close, hundreds at once."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from served import DRAW, events_of, listening

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
        stats = stats_of(server)
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


def memory() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_500_connections_at_once_are_drawn_or_refused_in_bounded_memory(engine):
    """Each is answered with a picture, or with 429 and when to come again; a second wave needs no more memory."""

    async def wave(url: str, bodies: list) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(bodies), max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
            return await asyncio.gather(*(client.post(DRAW, **body) for body in bodies))

    good, large = {"json": JSON | {"steps": 2}}, {"json": {"prompt": "x" * 1_000_000}}
    bodies = [large if place % 5 == 0 else good for place in range(500)]
    with listening(engine, slots=4, queue=16) as (url, server):
        asyncio.run(wave(url, bodies))
        before = memory()
        answers = asyncio.run(wave(url, bodies))
        after, stats = memory(), stats_of(server)
        assert httpx.get(f"{url}/health").status_code == 200
    statuses = [answer.status_code for answer in answers]
    assert set(statuses[::5]) == {413}
    assert {*statuses} == {200, 413, 429}
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
    assert (stats.queued, stats.running, stats.failed) == (0, 0, 0)
    assert stats.finished == stats.submitted
    assert after - before < 64 << 20


@pytest.mark.slow
def test_the_command_serves_until_a_signal_and_ends_with_0():
    command = [sys.executable, "-m", "segue", "serve", "--port", "0", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = re.match(r"herbarium at (http://127\.0\.0\.1:\d+):", process.stdout.readline())[1]
        answer = httpx.post(f"{url}{DRAW}", json=JSON, timeout=None)
        assert answer.status_code == 200
        assert answer.json()["segue"]["guidance"].startswith("sgg:")
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
