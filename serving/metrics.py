"""What Prometheus reads: the scheduler's queue, slots, steps and rows, and the requests by route, status and seconds."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
CLIENT_CLOSED = 499  # as nginx logs a client that closed the connection before its answer, which nobody reads
FAULT = 500
GAUGES = {
    "slots": "Samples that can share a step.",
    "queue_limit": "Requests that may wait for a slot.",
    "queued": "Requests that wait for a slot.",
    "running": "Requests in a slot.",
}
COUNTERS = {
    "submitted": "Requests that were accepted.",
    "finished": "Requests that ended with a picture.",
    "cancelled": "Requests that were given up by their caller.",
    "expired": "Requests that passed their deadline.",
    "failed": "Requests that ended with an error.",
    "refused": "Requests that were not accepted: the queue was full, or they could not be drawn.",
    "rows_used": "Rows of network evaluations that a request needed.",
    "rows_run": "Rows of network evaluations that ran, empty slots among them.",
}


class SchedulerCollector(Collector):
    """The scheduler's statistics, read when they are asked for; nothing before it is there."""

    def __init__(self, stats: Callable[[], Any]):
        self.stats = stats

    def collect(self) -> Iterator[Metric]:
        """One family for each number."""
        found = self.stats()
        if found is None:
            return
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"segue_{name}", text, getattr(found, name))
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"segue_{name}", text, getattr(found, name))
        padded = found.rows_run - found.rows_used
        yield CounterMetricFamily("segue_rows_padded", "Rows that ran for no request.", padded)
        steps = SummaryMetricFamily("segue_step_seconds", "Steps of the scheduler, and how long they took.")
        steps.add_metric([], found.ticks, found.tick_seconds)
        yield steps


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, stats: Callable[[], Any]):
        self.registry = CollectorRegistry()
        self.registry.register(SchedulerCollector(stats))
        how: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("segue_http_requests", "Requests that were answered.", ["route", "status"], **how)
        self.seconds = Histogram("segue_http_seconds", "Until an answer was sent whole.", ["route"], buckets=SECONDS, **how)
        self.current = Gauge("segue_http_current", "Requests that are being answered.", **how)


class Measured:
    """ASGI middleware that counts and times every request; the label of a route is its pattern, never what was sent."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: int | None = None
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self.metrics.current.track_inprogress():
            try:
                await self.app(scope, receive, noted)
            except Exception:
                status = status or FAULT  # which is answered around this middleware, where no answer has begun
                raise
            finally:
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(route, str(status or CLIENT_CLOSED)).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
