"""What the forwards of a scheduler do, seen from outside: their networks' time, and rows as a card would pad them."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from segue.engine.scheduling.lane import RowCount
from segue.engine.scheduling.scheduler import StepScheduler
from segue.engine.scheduling.sizes import Sizes
from segue.models.shared_layout import SharedRowsOfCall
from segue.models.shared_rows import SharedRows


def networks_of(scheduler: StepScheduler) -> Iterable[SharedRows]:
    """The rows of every network that has run so far."""
    return [rows for lane in scheduler._slots.lanes for rows in lane.networks.values()]


def _around(network: SharedRows, method: str, wrapper: Callable[..., None]) -> None:
    """Let ``wrapper(method, ...)`` be called where a method of this one network is."""
    setattr(network, method, partial(wrapper, getattr(network, method)))


class CapturedRows:
    """``rows`` of the forwards that follow, padded to the sizes that are captured on a card, whatever is run here."""

    def __init__(self, scheduler: StepScheduler):
        self.rows, self._sizes = RowCount(), Sizes()
        for network in networks_of(scheduler):
            _around(network, "put", self._count)

    def _count(self, put: Callable[[SharedRowsOfCall], None], rows: SharedRowsOfCall) -> None:
        self.rows += RowCount(rows.used, sum(self._sizes.padded(group.count) for group in rows.layout.groups))
        put(rows)


class NetworkTime:
    """``seconds`` in the networks of the forwards that follow: theirs, and what they compute ahead of them.  On a CPU."""

    def __init__(self, scheduler: StepScheduler, now: Callable[[], float]):
        self.seconds, self._now = 0.0, now
        for network in networks_of(scheduler):
            _around(network, "forward", self._timed)
            _around(network, "look_ahead", self._timed)

    def _timed(self, function: Callable[..., None], *given: Any) -> None:
        began = self._now()
        function(*given)
        self.seconds += self._now() - began
