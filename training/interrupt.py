"""Ctrl-C as a request: the step in hand is finished and saved before the run ends."""

import signal
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, SIGINT and SIGTERM set ``signal`` instead of ending the program; a second one interrupts at once.

    Works in the main thread only, as Python's signal handlers do.  Leaves the handlers as it found them.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended: 130 for Ctrl-C; 0 if none came."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
