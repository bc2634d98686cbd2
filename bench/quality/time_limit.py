"""A limit of time for work that is done piece by piece: no piece begins that would not end in time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class OutOfTimeError(Exception):
    """The next piece of work does not fit into what is left; what was done before is kept."""


@dataclass
class TimeLimit:
    """``minutes`` from its making on; None is no limit.  The pace is that of the pieces before, by their work."""

    minutes: float | None = None
    now: Callable[[], float] = time.monotonic
    _work: float = field(default=0.0, init=False)
    _seconds: float = field(default=0.0, init=False)

    def __post_init__(self):
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"limit-minutes must be positive, got {self.minutes}")
        self._began = self.now()

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return self.minutes is not None and self.now() - self._began >= 60 * self.minutes

    def spend(self, work: float, seconds: float) -> None:
        """A piece of so much work took so long."""
        self._work, self._seconds = self._work + work, self._seconds + seconds

    @contextmanager
    def piece(self, what: str, work: float) -> Iterator[None]:
        """Around a piece of so much work: :meth:`check` before it, :meth:`spend` after it."""
        self.check(what, work)
        began = self.now()
        yield
        self.spend(work, self.now() - began)

    def check(self, what: str, work: float) -> None:
        """Raise :class:`OutOfTimeError` if a piece of so much work would end too late."""
        if self.minutes is None:
            return
        left = 60 * self.minutes - (self.now() - self._began)
        needed = self._seconds * work / self._work if self._work else 0.0
        if left <= needed:
            raise OutOfTimeError(
                f"{what}: not begun, {max(left, 0):.0f} s left of {self.minutes:g} minutes, {needed:.0f} s needed"
            )
