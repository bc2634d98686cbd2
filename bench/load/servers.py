"""The servers that are compared: batches of steps, batches of requests, and none; all of them on the same engine."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from segue.engine.scheduling.drawing import Drawing
from segue.engine.scheduling.request import Request
from segue.engine.scheduling.scheduler import StepScheduler
from segue.engine.scheduling.slots import AnyRun

STEP, REQUEST, ONE = "step-level", "request-level", "no batching"
SERVERS = {
    STEP: "a request joins at the next step, and is answered when it is done",
    REQUEST: "requests join when the batch before them is done, and are answered when theirs is",
    ONE: "a request after the other",
}


class RequestScheduler(StepScheduler):
    """Batches of whole requests: slots are taken only when all of them are free, and a batch is answered together.

    Its forwards are those of its base class: runs that are done have no rows any more, and rules and steps of a batch may
    differ.  A server that keeps the rows of what is done, or batches equal requests alone, is slower.
    """

    def __init__(self, *given: Any, **options: Any):
        self._done: list[tuple[Request, Tensor]] = []  # of the batch that runs, with their states
        super().__init__(*given, **options)

    def _admit(self) -> None:
        if not self._running:
            self._answer()
            super()._admit()

    def tick(self) -> bool:
        """As of the base class."""
        left = super().tick()
        if not self._running:
            self._answer()
        return left

    def _finish(self, run: AnyRun) -> None:
        request = self._running[run]
        self._done.append((request, self._leave(run)))

    def _answer(self) -> None:
        """Make the results of the batch."""
        done, self._done = self._done, []
        for request, state in done:
            with self._change:
                self._finishing += 1
            self._finisher.submit(self._make_result, request, state)

    def _give_up(self, error: Exception) -> None:
        super()._give_up(error)
        self._answer()

    def _cancel_all(self) -> None:
        super()._cancel_all()
        self._answer()


def open_server(name: str, engine: Any, draw: Callable[..., Drawing], slots: int, queue: int, **options: Any) -> StepScheduler:
    """One of ``SERVERS`` with up to ``slots`` requests at once, one where it batches nothing, and ``queue`` that wait."""
    kind = RequestScheduler if name == REQUEST else StepScheduler
    return kind(engine, draw, slots=1 if name == ONE else slots, queue=queue, **options)
