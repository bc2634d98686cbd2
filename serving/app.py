"""The application: an engine and settings to the routes of a server."""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Receive

from segue.engine.core import EngineCore
from segue.engine.scheduling.errors import DeadlineError, QueueFullError, SchedulerClosedError

from . import page
from .encoded import PNG, encoded_run, kind_of, wants_file
from .events import Events, EventStream, Inbox, previews_every
from .limits import Current, Limits, Rate
from .metrics import CLIENT_CLOSED, Measured, Metrics
from .pending import GoneError, Pending
from .refusals import Refusal, checking, closed, fault, refusal_of
from .schemas import ImageRequest, PlanRequest
from .served_model import Order, ServedModel, plan_told
from .settings import Settings

logger = logging.getLogger("segue.serving")

READY = "ready"
THREADS = 4  # that plan requests and encode pictures, beside the scheduler's own
ANSWERED = (
    Refusal,
    RequestValidationError,
    HTTPException,
    QueueFullError,
    SchedulerClosedError,
    DeadlineError,
    FloatingPointError,
)


class Serving:
    """What the routes share.  ``scheduler`` is there from start-up to shutdown; ``ready`` once a picture was drawn."""

    def __init__(self, engine: EngineCore, settings: Settings):
        self.engine, self.settings = engine, settings
        self.model = ServedModel(engine, settings)
        self.metrics = Metrics(lambda: None if self.scheduler is None else self.scheduler.stats())
        self.scheduler: Any = None
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="segue-serving")
        self.ready, self.draining = False, False

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """The scheduler's life: warmed in the background, closed when every accepted request has ended."""
        self.scheduler = self.engine.scheduler(slots=self.settings.slots, queue=self.settings.queue)
        warming = asyncio.ensure_future(self._warm())
        try:
            yield
        finally:
            self.stop()
            await asyncio.wait([warming])
            await self.thread(self.scheduler.close)
            self.pool.shutdown()
            self.scheduler = None

    @property
    def state(self) -> str:
        """What ``/ready`` says."""
        if self.draining:
            return "shutting down"
        if not self.ready:
            return "starting"
        return READY if self.scheduler is not None and self.scheduler.alive else "broken"

    def stop(self) -> None:
        """Take no more requests; those that were accepted go on."""
        self.draining, self.ready = True, False

    async def _warm(self) -> None:
        try:
            if self.settings.warm:
                await self.thread(self._first_picture)
        except Exception:
            logger.exception("the first picture failed, and the server does not become ready")
        else:
            self.ready = not self.draining

    def _first_picture(self) -> None:
        """A picture for nobody: what is compiled or captured at the first step is there for the first request."""
        order = self.model.order(ImageRequest(prompt="0" if self.model.classes is not None else "a leaf"))
        self.scheduler.submit(order.what, order.rule, seed=0, **order.options()).result()

    async def thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run what takes longer than an event loop may wait."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, partial(function, *arguments))

    async def checked(self, function: Callable[..., Any], body: PlanRequest) -> Any:
        """What ``function`` makes of a request; what it raises of bad input is the client's."""
        with checking():
            return await self.thread(function, body)

    # --- pictures ------------------------------------------------------------------------------------------------------

    async def generate(self, body: ImageRequest, request: Request) -> Response:
        """Pictures as one answer, or as events."""
        arrived = time.monotonic()
        self.check_open()
        check_answer(body)
        plain = wants_file(request.headers.get("accept", ""), body)
        order = await self.checked(self.model.order, body)
        if body.stream:
            return await self._streamed(body, order, arrived)
        pending = await Pending.submit(self.scheduler, order, arrived, self.pool)
        try:
            runs = await pending.runs(until_gone(request.receive))
        except GoneError:
            return Response(status_code=CLIENT_CLOSED)
        if plain:
            headers = {"X-Segue-Seed": str(runs[0].seeds[0])}
            return Response(await self.thread(encoded_run, runs[0], body), media_type=f"image/{kind_of(body)}", headers=headers)
        pictures = [await self.thread(self.picture, body, run) for run in runs]
        about = plan_told(runs[0].plan, order.rule) | {"model": self.settings.name}
        return JSONResponse({"created": int(time.time())} | self._common(body, order) | {"data": pictures, "segue": about})

    async def _streamed(self, body: ImageRequest, order: Order, arrived: float) -> Response:
        inbox = Inbox()
        previews = previews_every(order.plan.calls, body.partial_images or 0)
        pending = await Pending.submit(self.scheduler, order, arrived, self.pool, previews, inbox.put)
        about = {"segue": plan_told(order.plan, order.rule) | {"model": self.settings.name}}
        events = Events(
            pending, inbox, self._common(body, order), body, self.thread, lambda run: self.picture(body, run) | about
        )
        return EventStream(events, self.settings.heartbeat)

    def check_open(self) -> None:
        """Raise :class:`Refusal` where nothing is drawn any more."""
        if self.draining or self.scheduler is None:
            raise closed()
        if not self.scheduler.alive:
            said = "the server draws no more since a fault of its device, and has to be started again"
            raise Refusal(503, said, "server_error", code="broken")

    def picture(self, body: ImageRequest, run: Any) -> dict[str, Any]:
        """A finished picture, and the seed that draws it again."""
        return {"b64_json": base64.b64encode(encoded_run(run, body)).decode(), "seed": run.seeds[0]}

    def _common(self, body: ImageRequest, order: Order) -> dict[str, Any]:
        size = order.pixels(self.model.factor)
        return {"size": size, "quality": "auto", "background": "opaque", "output_format": kind_of(body)}


def check_answer(body: ImageRequest) -> None:
    """Raise :class:`Refusal` for an answer in a form that there is not, or whose parts do not fit together."""
    if body.response_format not in (None, "b64_json"):
        said = f"response_format is b64_json, got {body.response_format!r}: this server keeps no pictures to give a URL of"
        raise Refusal(400, said, param="response_format")
    if body.output_compression is not None and kind_of(body) == PNG:
        said = f"output_compression {body.output_compression} is for jpeg and webp; a png loses nothing"
        raise Refusal(400, said, param="output_compression")
    for name in ("partial_images", "progress"):
        if getattr(body, name) and not body.stream:
            said = f"{name} {getattr(body, name)!r} is for streams: set stream to true"
            raise Refusal(400, said, param=name)


async def until_gone(receive: Receive) -> None:
    """Ends when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def create_app(engine: EngineCore, settings: Settings | None = None) -> FastAPI:
    """The application that draws with ``engine``; its lifespan makes the engine's scheduler and closes it.

    ``app.state.serving`` is what the routes share.  Raises ``ValueError`` for settings that do not fit the engine.
    """
    settings = settings or Settings()
    serving = Serving(engine, settings)
    app = FastAPI(title="Segue", lifespan=serving.lifespan, docs_url=None, redoc_url=None)  # those fetch from elsewhere
    app.state.serving = serving
    add_routes(app, serving)
    for kind in ANSWERED:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, lambda *_: fault().response())
    rate = None if settings.rate is None else Rate(settings.rate)
    app.add_middleware(Limits, settings=settings, current=Current(settings.max_requests), rate=rate)
    app.add_middleware(Measured, metrics=serving.metrics)
    return app


def state_told(state: str) -> Response:
    """The answer of ``/ready``."""
    return JSONResponse({"status": state}, 200 if state == READY else 503)


async def answer(_: Request, error: Exception) -> Response:
    """A refusal as its status and its sentence."""
    return (refusal_of(error, tuple(ImageRequest.model_fields)) or fault()).response()


def add_routes(app: FastAPI, serving: Serving) -> None:
    """Every route of the server."""
    page.add_routes(app)

    @app.get("/health", summary="Whether the process answers.")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether requests would be drawn at once: 503 while starting and while shutting down.")
    async def ready() -> Response:
        return state_told(serving.state)

    @app.get("/metrics", summary="For Prometheus.")
    async def metrics() -> Response:
        return Response(generate_latest(serving.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", summary="The model, as a list of one.")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [await serving.thread(serving.model.described)]}

    @app.get("/v1/models/{name:path}", summary="The model by its name.")
    async def model(name: str) -> dict[str, Any]:
        await serving.checked(serving.model.planned, PlanRequest(model=name[:200]))
        return await serving.thread(serving.model.described)

    @app.post("/v1/images/plans", summary="What a rule would cost, without drawing.")
    async def plan(body: PlanRequest) -> dict[str, Any]:
        return plan_told(*await serving.checked(serving.model.planned, body))

    @app.post("/v1/images/generations", summary="Draw pictures.", response_model=None)
    async def generations(body: ImageRequest, request: Request) -> Response:
        return await serving.generate(body, request)
