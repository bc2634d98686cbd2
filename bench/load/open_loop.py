"""Requests to a server at planned times, whatever it does, and how long each took from there."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np

from ..quality.time_limit import OutOfTimeError
from .arrivals import Arrival


class Server(Protocol):
    """What takes requests from any thread and answers them some time."""

    def submit(self, what: Arrival) -> Future: ...


@dataclass(frozen=True)
class Clock:
    """Seconds, and how to let some pass."""

    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep

    def wait_until(self, moment: float) -> None:
        """Return as soon as the moment has come."""
        while (left := moment - self.now()) > 0:
            self.wait(left)


@dataclass(frozen=True, eq=False)
class Answers:
    """What became of a sequence of requests, each latency [n] in seconds from its planned arrival to its result.

    ``seconds`` pass from the first possible arrival to the last result; ``late`` [n] is how much later than planned each was
    submitted, which its latency includes.
    """

    latency: np.ndarray
    late: np.ndarray
    seconds: float

    @property
    def throughput(self) -> float:
        """Pictures a second."""
        return len(self.latency) / self.seconds


def serve(server: Server, arrivals: Sequence[Arrival], clock: Clock, limit: float = float("inf")) -> Answers:
    """Submit every request when it is due, and wait for all answers.

    Raises :class:`OutOfTimeError` where they are not all there after ``limit`` seconds, and what a request ended with if that
    is no result.
    """
    answered: SimpleQueue[tuple[int, float]] = SimpleQueue()
    requests: list[Future] = []
    late = np.zeros(len(arrivals))
    began = clock.now()

    def note(number: int, _request: Future) -> None:
        answered.put((number, clock.now()))

    for number, arrival in enumerate(arrivals):
        clock.wait_until(began + arrival.due)
        if clock.now() - began > limit:
            raise _out_of_time(limit, number, len(arrivals))
        late[number] = clock.now() - began - arrival.due
        requests.append(server.submit(arrival))
        requests[-1].add_done_callback(partial(note, number))
    finished = np.zeros(len(arrivals))
    for count in range(len(arrivals)):
        left = began + limit - clock.now()
        try:
            number, moment = answered.get(timeout=None if left == float("inf") else max(left, 0.0))
        except Empty:
            raise _out_of_time(limit, count, len(arrivals)) from None
        finished[number] = moment - began
    for request in requests:
        request.result()
    return Answers(finished - [arrival.due for arrival in arrivals], late, float(finished.max()))


def _out_of_time(limit: float, count: int, wanted: int) -> OutOfTimeError:
    return OutOfTimeError(f"{count} of {wanted} requests in the {limit:.0f} s that there were")
