"""The pictures of one HTTP request on their way through the scheduler: accepted together, and given up together."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from segue.engine.scheduling.errors import DeadlineError

from .refusals import Refusal, checking
from .served_model import Order

SOONEST = 1e-9  # seconds, of a deadline that has passed: the scheduler counts it among those that expired
Watch = Callable[[int, Any], None]  # the place of a picture and what is heard of it: its progress, and itself when it has ended


class GoneError(Exception):
    """The client has closed the connection: there is nobody to answer."""


class Pending:
    """The scheduler's requests for the pictures of one HTTP request, which has ``deadline`` seconds; None: any."""

    def __init__(self, requests: list[Any], deadline: float | None = None):
        self.requests, self.deadline = requests, deadline

    @classmethod
    async def submit(
        cls, scheduler: Any, order: Order, arrived: float, pool: Executor, previews: int = 0, watch: Watch | None = None
    ) -> "Pending":
        """All pictures, or none: raises what the scheduler does for the first that it refuses.

        The deadline counts from ``arrived``, a time of ``time.monotonic()``.
        """
        pending = cls([], order.deadline)
        until = None if order.deadline is None else arrived + order.deadline
        work = asyncio.get_running_loop().run_in_executor(pool, pending._submit_all, scheduler, order, until, previews, watch)
        try:
            await asyncio.shield(work)
        except BaseException:
            pending.cancel()
            work.add_done_callback(lambda _: pending.cancel())  # what the thread still submits where the caller was cancelled
            raise
        return pending

    def _submit_all(self, scheduler: Any, order: Order, until: float | None, previews: int, watch: Watch | None) -> None:
        for place, seed in enumerate(order.seeds):
            listener = None if watch is None else partial(watch, place)
            with checking():
                options = order.options() | {"previews": previews, "listener": listener}
                if until is not None:
                    options["deadline"] = max(until - time.monotonic(), SOONEST)
                request = scheduler.submit(order.what, order.rule, seed=seed, **options)
            self.requests.append(request)
            if listener is not None:
                request.add_done_callback(listener)

    def cancel(self) -> None:
        """Cancel what is not done."""
        for request in filter(None, self.requests):
            request.cancel()

    def forget(self, place: int) -> None:
        """Let go of a picture that was answered: its run holds its latents and the picture itself."""
        self.requests[place] = None

    async def runs(self, gone: Awaitable[Any]) -> list[Any]:
        """The finished runs; raises what the first failure was, or :class:`GoneError` once ``gone`` is done."""
        futures = [asyncio.wrap_future(request) for request in self.requests]
        watcher = asyncio.ensure_future(gone)
        waiting = {*futures, watcher}
        try:
            while not all(future.done() for future in futures):
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if watcher in done:
                    raise GoneError
                for future in done:
                    self.finished(future)
            return [self.finished(future) for future in futures]
        finally:
            watcher.cancel()
            for future in futures:
                _ = future.cancel() or future.cancelled() or future.exception()  # which nobody else looks at

    def finished(self, future: Any) -> Any:
        """The result of a future that is done; a cancelled one was given up by the server, not by its caller."""
        if future.cancelled():
            raise Refusal(503, "the picture was given up because the server stopped", "server_error", code="shutting_down")
        try:
            return future.result()
        except DeadlineError:  # the scheduler knows what was left of it
            raise DeadlineError(f"the request was not done after {self.deadline:.3g} s") from None
