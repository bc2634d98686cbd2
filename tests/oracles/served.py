"""Servers for tests: an application in this process, and one on a real socket of the loopback."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import numpy as np
from PIL import Image

from segue.serving.app import Serving, create_app
from segue.serving.server import Server, bound_socket, make_server, url_of
from segue.serving.settings import Settings

DRAW = "/v1/images/generations"
# a sample in the company of others rounds otherwise: 1e-5 of a range of 2 moves a value across the middle of two levels
MOST_LEVELS = 1


class Client(httpx.AsyncClient):
    """A client of an application in this process; ``serving`` is what its routes share."""

    serving: Serving

    async def draw(self, **fields: Any) -> httpx.Response:
        """Ask for a picture of class 3, unless ``fields`` say otherwise, in 3 steps."""
        return await self.post(DRAW, json={"prompt": "3", "steps": 3} | fields)


@asynccontextmanager
async def served(engine: Any, **settings: Any) -> AsyncIterator[Client]:
    """A client of a server that has started."""
    app = create_app(engine, Settings(**{"warm": False} | settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), Client(transport=transport, base_url="http://test") as client:
        client.serving = app.state.serving
        yield client


def run(work: Callable[[Client], Awaitable[Any]], engine: Any, **settings: Any) -> Any:
    """What ``work(client)`` returns."""

    async def whole() -> Any:
        async with served(engine, **settings) as client:
            return await work(client)

    return asyncio.run(whole())


def counted(scheduler: Any) -> Any:
    """The statistics once every accepted request has ended and is counted, which is just after its result is there."""
    while True:
        stats = scheduler.stats()
        if stats.submitted == stats.finished + stats.cancelled + stats.expired + stats.failed:
            return stats


def picture_of(data: dict[str, Any]) -> Image.Image:
    """The picture of an answer or an event."""
    return Image.open(io.BytesIO(base64.b64decode(data["b64_json"])))


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream; the name of each is the type of its data."""
    found = []
    for block in filter(None, text.split("\n\n")):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name.removeprefix("event: ") == found[-1].get("type", "error")
    return found


def differ(first: Image.Image, second: Image.Image) -> int:
    """By how many levels of 255 two pictures of one size differ at most."""
    assert first.size == second.size
    return int(np.abs(np.asarray(first.convert("RGB"), int) - np.asarray(second.convert("RGB"), int)).max())


@contextmanager
def listening(engine: Any, **settings: Any) -> Iterator[tuple[str, Server]]:
    """The address of a real server, and the server; it is told to stop at the end, and waited for."""
    bound = bound_socket("127.0.0.1", 0)
    server = make_server(create_app(engine, Settings(**{"warm": False} | settings)), quiet=True)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        with httpx.Client(base_url=url_of(bound)) as client:
            client.get("/health")  # answered once it has started
        yield url_of(bound), server
    finally:
        server.stop()
        thread.join()
        bound.close()
