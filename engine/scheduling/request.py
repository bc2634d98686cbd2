"""A request: the future of one picture, and what is heard of it on the way."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from ..planning.plan import Plan
from .drawing import Drawing

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Progress:
    """What is known after a network call: how many of the ``calls`` are made, and the noise level of the last one.

    ``picture`` is one of the clean estimate, where previews were asked for and this call makes one.
    """

    call: int
    calls: int
    step: int
    steps: int
    sigma: float
    picture: Any = None


@dataclass(frozen=True)
class Deadline:
    """``seconds`` after which a request is given up, and the time of ``time.monotonic()`` at which they are over."""

    seconds: float
    until: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """So many seconds from now."""
        return cls(seconds, time.monotonic() + seconds)


class Request(Future):
    """The future of a run of one sample.  :meth:`cancel` acts at the next step, also while it runs.

    Its exception may be a :class:`.errors.DeadlineError`, a :class:`segue.engine.running.sampler.NonFiniteError`, a
    :class:`.errors.SchedulerClosedError`, or what else went wrong.
    """

    def __init__(self, drawing: Drawing, previews: int = 0, deadline: Deadline | None = None):
        """``previews``: every so many calls a picture is made, 0 for none."""
        super().__init__()
        self._settling = threading.RLock()
        self.drawing, self.previews, self.deadline = drawing, previews, deadline
        self._unread: deque[Progress | None] = deque()  # None: the request has ended
        self._told = threading.Condition()
        self._listeners: list[Callable[[Progress], None]] = []
        self.add_done_callback(lambda _: self._tell_waiters())
        self.add_done_callback(lambda _: self._keep(None))

    @property
    def plan(self) -> Plan:
        return self.drawing.plan

    @property
    def seed(self) -> int:
        return self.drawing.seed

    def on_progress(self, listener: Callable[[Progress], None]) -> None:
        """Let ``listener`` hear of every call, in a thread of the scheduler: it must be quick."""
        self._listeners.append(listener)

    def events(self, timeout: float | None = None) -> Iterator[Progress]:
        """What is heard of the request until it ends, from its beginning; for one reader.

        Of the pictures that were not read yet the newest alone is kept.  Raises ``queue.Empty`` where nothing is heard for
        ``timeout`` seconds.  How it ended :meth:`result` says.
        """
        while (progress := self._next(timeout)) is not None:
            yield progress

    def tell(self, progress: Progress) -> None:
        """Let the reader and the listeners hear of a call."""
        self._keep(progress)
        for listener in list(self._listeners):
            try:
                listener(progress)
            except Exception:
                self._listeners.remove(listener)
                _LOG.exception("a listener of a request failed, and hears of it no more")

    def _keep(self, progress: Progress | None) -> None:
        """For the reader: what nobody reads, as where listeners hear it, holds one picture at most."""
        with self._told:
            if progress is not None and progress.picture is not None:
                self._unread = deque(replace(each, picture=None) if each else None for each in self._unread)
            self._unread.append(progress)
            self._told.notify()

    def _next(self, timeout: float | None) -> Progress | None:
        with self._told:
            if not self._told.wait_for(lambda: self._unread, timeout):
                raise queue.Empty
            return self._unread.popleft()

    def _tell_waiters(self) -> None:
        """Let ``concurrent.futures.wait`` know of a request that was cancelled, which a future leaves to who runs it."""
        with self._settling:
            if self.cancelled() and self._state == "CANCELLED":  # type: ignore[attr-defined]
                self.set_running_or_notify_cancel()

    def settle(self, result: Any = None, error: BaseException | None = None) -> bool:
        """End the request, unless it has ended already; returns whether it had not."""
        with self._settling:
            if self.done() or not self.set_running_or_notify_cancel():
                return False
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)
            return True
