"""The server on Ray Serve: processes that draw, as many as the queue asks for, behind a door that knows when one dies."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from starlette.types import Message, Scope

from .ray_cluster import gpus_of_each, on_cluster
from .ray_door import door_app
from .settings import Settings

MakeApp = Callable[[Settings], FastAPI]
NAME, DRAWING, DOOR = "segue", "drawing", "door"  # of the application on a cluster, and its two deployments
UPSCALE_SECONDS, DOWNSCALE_SECONDS = 5.0, 120.0  # that the queue has to be long, or short
LONGEST_DRAIN = 24 * 3600.0  # seconds that accepted requests have where nothing else is said


@dataclass(frozen=True)
class Replicas:
    """How many processes draw, ``least`` to ``most`` by the requests that wait, and what each has of a machine.

    ``gpus`` None: one where the cluster has any.  ``address`` is that of a running cluster, None starts one on this machine.
    Raises ``ValueError`` with the value.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"replicas are 1 or more, the least before the most, got {self.least} to {self.most}")
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} of a replica must be a number from 0, got {value}")


class ServedProcess:
    """A process that draws: the application of one machine, asked by ASGI messages instead of a socket."""

    async def __init__(self, make_app: MakeApp, settings: Settings):  # type: ignore[misc]  # Ray awaits it
        self.app = make_app(settings)
        self.lifespan = self.app.router.lifespan_context(self.app)
        await self.lifespan.__aenter__()

    def check_health(self) -> None:
        """Raise where nothing is drawn here any more: Ray then starts another process in the place of this one."""
        serving = getattr(self.app.state, "serving", None)
        if serving is not None and serving.scheduler is not None and not (serving.draining or serving.scheduler.alive):
            raise RuntimeError("the scheduler of this process has ended")

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The messages that answer a request; leaving them early is to the application as if its client had gone."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> Message:
            if not first:
                await gone.wait()
            return first.pop() if first else {"type": "http.disconnect"}

        answering = asyncio.ensure_future(self.app(dict(scope), receive, messages.put))
        answering.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
            answering.result()
        finally:
            gone.set()
            answering.cancel()
            await asyncio.wait([answering])

    async def page(self, scope: Scope) -> tuple[str, str]:
        """Which process this is, and the text of a page of it."""
        from ray import serve

        parts = [message.get("body", b"") async for message in self.answer(scope, b"")]
        return serve.get_replica_context().replica_id.unique_id, b"".join(parts).decode()

    async def __del__(self) -> None:
        await self.lifespan.__aexit__(None, None, None)  # Ray calls it when a replica shall end, and waits


class Door:
    """The process that requests come to; it loads no model, and needs no GPU."""

    def __init__(self, drawing: Any, settings: Settings):
        self.drawing, self.settings = drawing, settings

    def __serve_build_asgi_app__(self) -> Any:
        return door_app(self.drawing, self.settings)


def application(
    make_app: MakeApp, settings: Settings, replicas: Replicas, drain: float | None = None, gpus: float = 0.0
) -> Any:
    """The Ray Serve application; ``make_app`` makes that of one machine, in each process that draws.

    Processes come and go so that each has about ``slots`` requests, those that wait included.
    """
    from ray import serve

    scaling = {
        "min_replicas": replicas.least,
        "max_replicas": replicas.most,
        "target_ongoing_requests": settings.slots,
        "upscale_delay_s": UPSCALE_SECONDS,
        "downscale_delay_s": DOWNSCALE_SECONDS,
    }
    patience = LONGEST_DRAIN if drain is None else drain
    drawing = serve.deployment(
        name=DRAWING,
        autoscaling_config=scaling,
        max_ongoing_requests=settings.slots + settings.queue,
        max_queued_requests=max(settings.queue, 1),
        graceful_shutdown_timeout_s=patience,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": gpus},
    )(ServedProcess)
    door = serve.deployment(
        name=DOOR,
        max_ongoing_requests=settings.max_requests,
        graceful_shutdown_timeout_s=patience,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(Door))
    behind = replace(settings, keys=(), rate=None)  # whose the door is
    return door.bind(drawing.bind(make_app, behind), settings)


def serve_on_ray(
    make_app: MakeApp,
    settings: Settings,
    replicas: Replicas,
    host: str,
    port: int,
    drain: float | None,
    ready: Callable[[], None],
) -> None:
    """Serve until a signal, then let accepted requests end; ``ready()`` is called once requests are taken.

    Raises ``ValueError`` as :func:`.ray_cluster.on_cluster`, and where the processes do not come up.
    """
    with on_cluster(replicas.address, cpus=replicas.most * replicas.cpus + 1) as resources:
        from ray import serve

        serve.start(http_options={"host": host, "port": port})
        try:
            gpus = gpus_of_each(replicas.gpus, None, resources)
            try:
                serve.run(application(make_app, settings, replicas, drain, gpus), name=NAME)
            except RuntimeError as error:
                raise ValueError(f"no process that draws came up: {_reason(serve.status()) or error}") from None
            ready()
            _until_signal()
        finally:
            serve.shutdown()


def _reason(status: Any) -> str:
    """The last error that a deployment tells of; empty where none does."""
    told = (deployment.message for app in status.applications.values() for deployment in app.deployments.values())
    lines = [line.strip() for message in told for line in message.splitlines() if "Error: " in line]
    return lines[-1].partition("Error: ")[2] if lines else ""


def _until_signal() -> None:
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()
