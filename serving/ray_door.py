"""The door of a server on Ray: hands each request to a process that draws, and to another one where that process dies."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from .app import READY, state_told, until_gone
from .events import ERROR, frame
from .limits import Current, Limits, Rate
from .ray_metrics import joined_page
from .refusals import RETRY_SECONDS, Refusal
from .settings import Settings

logger = logging.getLogger("segue.serving")

ATTEMPTS = 3  # processes that may die on one request before its client is told
PASSED = (
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
READY_SECONDS = 1.0  # that processes have to say whether they are ready
SCRAPE_SECONDS = 5.0  # that processes have to tell their metrics
AGAIN = {"Retry-After": str(RETRY_SECONDS)}


def door_app(drawing: Any, settings: Settings) -> Starlette:
    """The application behind Ray's proxy: the limits of the server, and all the rest by ``drawing``, a Ray Serve handle."""

    async def metrics(request: Request) -> Response:
        """Those of every process."""
        from ray.serve.exceptions import DeploymentUnavailableError

        scope = {name: request.scope[name] for name in PASSED if name in request.scope}
        asked = drawing.broadcast("page", scope)
        try:
            pages = await asked.results_async(timeout_s=SCRAPE_SECONDS, return_exceptions=True)
        except DeploymentUnavailableError:
            raise unavailable() from None
        except TimeoutError:
            said = f"a process did not tell its metrics within {SCRAPE_SECONDS:g} seconds"
            raise Refusal(503, said, "server_error", code="unavailable", headers=AGAIN) from None
        there = [page for page in pages if not isinstance(page, BaseException)]
        return Response(joined_page(there), media_type=CONTENT_TYPE_LATEST)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    readiness = Readiness(drawing)

    async def ready(_: Request) -> Response:
        return state_told(await readiness.state())

    own = {"/metrics": metrics, "/health": health, "/ready": ready}
    routes = [Route(path, answer) for path, answer in own.items()]
    rate = None if settings.rate is None else Rate(settings.rate)
    limits = Middleware(Limits, settings=settings, current=Current(settings.max_requests), rate=rate)
    return Starlette(routes=[*routes, Mount("/", Forward(drawing))], middleware=[limits])


class Readiness:
    """Whether any process would draw at once; they are asked once at a time, however many want to know."""

    def __init__(self, drawing: Any):
        self.drawing = drawing
        self.asking: asyncio.Future[str] | None = None

    async def state(self) -> str:
        """What ``/ready`` says."""
        if self.asking is None or self.asking.done():
            self.asking = asyncio.ensure_future(self._ask())
        return await asyncio.shield(self.asking)

    async def _ask(self) -> str:
        from ray.serve.exceptions import DeploymentUnavailableError

        try:
            told = await self.drawing.broadcast("state").results_async(timeout_s=READY_SECONDS, return_exceptions=True)
        except TimeoutError:
            return READY  # they have their hands full: a process that has all it takes answers when one of it is done
        except DeploymentUnavailableError:
            return "unavailable"
        states = [state for state in told if isinstance(state, str)]
        return READY if READY in states else next(iter(states), "unavailable")


class Forward:
    """An ASGI application whose answers other processes give.

    A request says all that is drawn, so it may be drawn again: what a process takes with it before its answer begins is asked
    of another, up to ``ATTEMPTS`` times.  A stream that has begun ends with an error event, and any other answer with the
    connection.
    """

    def __init__(self, drawing: Any):
        self.drawing = drawing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise Refusal(400, f"this server speaks HTTP, got {scope['type']}")
        body = (await receive()).get("body", b"")
        passed = {name: scope[name] for name in PASSED if name in scope}
        answered, gone = asyncio.ensure_future(self._answer(passed, body, send)), asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                answered.result()
        finally:
            answered.cancel()
            gone.cancel()

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        for attempt in range(1, ATTEMPTS + 1):
            begun: Message | None = None
            try:
                async for message in self._messages(scope, body):
                    begun = begun or message
                    await send(message)
                return
            except BackPressureError:
                raise Refusal(429, "the queue is full", "rate_limit_error", code="queue_full", headers=AGAIN) from None
            except DeploymentUnavailableError:
                raise unavailable() from None
            except RayActorError as error:
                logger.warning("a process died on attempt %d of a request: %s", attempt, " ".join(str(error).split())[:200])
                if begun is not None:
                    await _end(begun, send)
                    return
        said = f"{ATTEMPTS} processes died on this request, one after the other"
        raise Refusal(503, said, "server_error", code="died")

    async def _messages(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The answer of one process; leaving it cancels what is not done there."""
        answer = self.drawing.options(stream=True, method_name="answer").remote(scope, body)
        ended = False
        try:
            async for message in answer:
                yield message
            ended = True
        finally:
            if not ended:
                answer.cancel()


def unavailable() -> Refusal:
    """Why nothing is drawn while no process is there."""
    said = "no process that draws is there at the moment"
    return Refusal(503, said, "server_error", code="unavailable", headers=AGAIN)


async def _end(begun: Message, send: Send) -> None:
    """End an answer whose process died after ``begun``, its first message."""
    if "text/event-stream" not in Headers(raw=begun["headers"]).get("content-type", ""):
        raise ConnectionError("the process that answered died within its answer")  # the server closes the connection
    broken = Refusal(503, "the process that drew this request died; send it again", "server_error", code="died")
    await send({"type": "http.response.body", "body": frame(ERROR, broken.body()).encode(), "more_body": False})
