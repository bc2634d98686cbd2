"""Requests come when they were planned, whatever the server does, and latencies count from there."""

from concurrent.futures import Future

import numpy as np
import pytest

from segue.bench.load.arrivals import Arrival, Kind
from segue.bench.load.open_loop import Answers, Clock, serve
from segue.bench.load.percentiles import Percentiles
from segue.bench.quality.time_limit import OutOfTimeError

KIND = Kind("none", 1)


class OneAfterTheOther:
    """A server and its clock: each request takes ``takes`` seconds, and each submission ``submitting``.

    Time goes on where somebody waits, and once the last of ``requests`` is there whenever somebody looks.
    """

    def __init__(self, requests: int, takes: float, submitting: float = 0.0, error: Exception | None = None):
        self.coming, self.takes, self.submitting, self.error = requests, takes, submitting, error
        self.moment, self.free, self.answering = 100.0, 0.0, False
        self.under_way: list[tuple[float, Future]] = []
        self.clock = Clock(self.now, lambda seconds: self.advance(self.moment + seconds))

    def now(self) -> float:
        if not (self.coming or self.answering):
            self.advance(self.free)
        return self.moment

    def advance(self, moment: float) -> None:
        """Let time pass, and answer what is done meanwhile at its own moment."""
        self.answering = True
        while self.under_way and self.under_way[0][0] <= moment:
            self.moment, future = self.under_way.pop(0)
            future.set_exception(self.error) if self.error else future.set_result(None)
        self.moment, self.answering = max(self.moment, moment), False

    def submit(self, what: Arrival) -> Future:
        self.advance(self.moment + self.submitting)
        self.free = max(self.free, self.moment) + self.takes
        self.under_way.append((self.free, Future()))
        self.coming -= 1
        return self.under_way[-1][1]


def served(server: OneAfterTheOther, due: tuple[float, ...], limit: float = float("inf")) -> Answers:
    return serve(server, [Arrival(KIND, number, moment) for number, moment in enumerate(due)], server.clock, limit)


def test_latencies_of_a_queue_by_hand():
    """Two seconds each, after 1, 2 and 10 seconds: done after 3, 5 and 12."""
    answers = served(OneAfterTheOther(3, 2.0), (1.0, 2.0, 10.0))
    assert answers.latency == pytest.approx([2.0, 3.0, 2.0])
    assert answers.late == pytest.approx([0.0, 0.0, 0.0])
    assert answers.seconds == pytest.approx(12.0) and answers.throughput == pytest.approx(0.25)


def test_what_is_submitted_late_counts_from_when_it_was_planned():
    """Submitting takes 3 seconds: done after 1 + 3 + 1 = 5; the second is submitted at 4 in the place of 2, done at 8."""
    answers = served(OneAfterTheOther(2, 1.0, submitting=3.0), (1.0, 2.0))
    assert answers.late == pytest.approx([0.0, 2.0])
    assert answers.latency == pytest.approx([4.0, 6.0])


def test_what_is_not_there_in_time_is_said():
    with pytest.raises(OutOfTimeError, match="2 of 3 requests in the 3 s that there were"):
        served(OneAfterTheOther(3, 100.0), (0.0, 2.0, 4.0), limit=3.0)
    with pytest.raises(OutOfTimeError, match="0 of 3 requests in the 4 s"):
        served(OneAfterTheOther(4, 100.0), (0.0, 2.0, 4.0), limit=4.0)


def test_a_request_that_failed_has_no_latency():
    with pytest.raises(ZeroDivisionError, match="of the request"):
        served(OneAfterTheOther(2, 1.0, error=ZeroDivisionError("of the request")), (0.0, 1.0))


def test_percentiles_by_hand():
    figures = Percentiles.of(np.arange(100, 0, -1))
    assert (figures.mean, figures.p50, figures.n) == (50.5, 50.5, 100)
    assert figures.p95 == pytest.approx(95.05) and figures.p99 == pytest.approx(99.01)
    assert Percentiles.of([3.0]) == Percentiles(3.0, 3.0, 3.0, 3.0, 1)
    statistics = figures.statistics()
    assert list(statistics) == ["mean", "p50", "p95", "p99"]
    assert statistics["p95"].median == figures.p95 and statistics["p95"].n == 100
    for samples in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite samples"):
            Percentiles.of(samples)
