"""The server on Ray Serve: processes that draw, as many as the queue asks for, behind a door that knows when one dies."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from starlette.types import Message, Scope

from .app import READY
from .error_text import one_line
from .ray_cluster import check_resources, gpus_of_each, on_cluster
from .ray_door import door_app
from .server import bound_socket, url_at
from .settings import Settings

MakeApp = Callable[[Settings], FastAPI]
DRAWING, DOOR = "drawing", "door"
# two applications of one deployment each, the door first: what it has accepted ends while there are processes that draw
APPLICATIONS = NAME, NAME_OF_DRAWING = "segue", "segue-drawing"
UPSCALE_SECONDS, DOWNSCALE_SECONDS = 5.0, 120.0  # that the queue has to be long, or short
LONGEST_DRAIN = 24 * 3600.0  # seconds that accepted requests have where nothing else is said
POLL_SECONDS = 0.2


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
        check_resources("replica", self.cpus, self.gpus)


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

    async def state(self) -> str:
        """What ``/ready`` says here."""
        serving = getattr(self.app.state, "serving", None)
        return READY if serving is None else serving.state

    async def page(self, scope: Scope) -> tuple[str, str]:
        """Which process this is, and the text of a page of it."""
        from ray import serve

        parts = [message.get("body", b"") async for message in self.answer(scope, b"")]
        return serve.get_replica_context().replica_id.unique_id, b"".join(parts).decode()

    async def __del__(self) -> None:
        await self.lifespan.__aexit__(None, None, None)  # Ray calls it when a replica shall end, and waits


class Door:
    """The process that requests come to; it loads no model, and needs no GPU."""

    def __init__(self, settings: Settings):
        from ray import serve

        self.drawing, self.settings = serve.get_deployment_handle(DRAWING, NAME_OF_DRAWING), settings

    def __serve_build_asgi_app__(self) -> Any:
        return door_app(self.drawing, self.settings)


def run_applications(
    make_app: MakeApp, settings: Settings, replicas: Replicas, drain: float | None = None, gpus: float = 0.0
) -> None:
    """Begin to serve on Ray Serve; ``make_app`` makes the application of one machine, in each process that draws.

    Processes come and go so that each has about ``slots`` requests, those that wait included.  Raises ``RuntimeError`` and
    Ray Serve's own where they do not come up.
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
        max_ongoing_requests=2 * settings.max_requests,  # beyond the half it refuses, and tells of its health
        graceful_shutdown_timeout_s=patience,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(Door))
    behind = replace(settings, keys=(), rate=None)  # whose the door is
    serve.run(drawing.bind(make_app, behind), name=NAME_OF_DRAWING, route_prefix=None)
    serve.run(door.bind(settings), name=NAME)


def serve_on_ray(
    make_app: MakeApp,
    settings: Settings,
    replicas: Replicas,
    host: str,
    port: int,
    drain: float | None,
    ready: Callable[[str], None],
) -> None:
    """Serve until a signal, then let accepted requests end; ``ready(url)`` is called once requests are taken.

    What else runs on the cluster goes on.  Raises ``ValueError`` as :func:`.ray_cluster.on_cluster`, where Ray Serve is there
    and cannot take this server, and where the processes do not come up, ``OSError`` where the address is taken.
    """
    with on_cluster(replicas.address, cpus=replicas.most * replicas.cpus + 1) as resources:
        from ray import serve
        from ray.serve.exceptions import RayServeException

        (host, port), started = start_serve(host, port)
        try:
            gpus = gpus_of_each(replicas.gpus, None, resources)
            try:
                run_applications(make_app, settings, replicas, drain, gpus)
            except (RuntimeError, RayServeException) as error:
                raise ValueError(f"no process that draws came up: {_reason(serve.status()) or one_line(error)}") from None
            ready(url_at(host, port))
            until_signal()
            drain_applications(drain)
        finally:
            leave_serve(started)


def start_serve(host: str, port: int) -> tuple[tuple[str, int], bool]:
    """Start Ray Serve at an address, port 0 takes a free one, or use the one of the cluster; the address and which it was.

    Raises ``ValueError`` where the one that is there listens elsewhere or has such a server, ``OSError`` for a taken address.
    """
    from ray import serve
    from ray.serve.context import _get_global_client  # the public functions tell neither the one nor the other

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        with bound_socket(host, port) as bound:
            host, port = bound.getsockname()[:2]  # Ray's own proxy takes it next
        serve.start(http_options={"host": host, "port": port})
        return (host, port), True
    there = client.http_config.host, client.http_config.port
    if host != there[0] or port not in (0, there[1]):
        raise ValueError(f"Ray Serve of this cluster listens at {there[0]} port {there[1]}, and not at {host} port {port}")
    if taken := sorted(serve.status().applications.keys() & set(APPLICATIONS)):
        raise ValueError(f"Ray Serve of this cluster has an application {taken[0]!r} already")
    return there, False


def drain_applications(drain: float | None) -> None:
    """Take no more requests, and wait until those that were accepted are drawn, at most ``drain`` seconds.

    Ray ends a replica when its requests have ended, and forgets an application when its replicas have.
    """
    from ray import serve

    until = time.monotonic() + (LONGEST_DRAIN if drain is None else drain)
    for name in APPLICATIONS:
        serve.delete(name, _blocking=False)  # the blocking one gives up after a minute
        while name in serve.status().applications and time.monotonic() < until:
            time.sleep(POLL_SECONDS)


def leave_serve(started: bool) -> None:
    """Delete what is left of this server, and shut Ray Serve down where it was ``started`` here and nobody else uses it."""
    from ray import serve

    there = serve.status().applications.keys()
    for name in there & set(APPLICATIONS):
        serve.delete(name, _blocking=False)
    if started and not there - set(APPLICATIONS):
        serve.shutdown()


def _reason(status: Any) -> str:
    """The last error that a deployment of ours tells of; empty where none does."""
    ours = [app for name, app in status.applications.items() if name in APPLICATIONS]
    told = (deployment.message for app in ours for deployment in app.deployments.values())
    lines = [line.strip() for message in told for line in message.splitlines() if "Error: " in line]
    return lines[-1].partition("Error: ")[2] if lines else ""


def until_signal() -> None:
    """Wait for SIGINT or SIGTERM; a second one does what it did before."""
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
