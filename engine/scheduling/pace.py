"""How far the host runs ahead of a device: far enough that the device never waits, and no farther."""

from collections import deque
from typing import Any

import torch

AHEAD = 1  # ticks that the device may have before it beside the one it is at


class Pace:
    """Marks of ticks on a device.  Without them hundreds of launches would wait there, and a request that comes behind them."""

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: deque[Any] = deque()

    def wait(self) -> None:
        """Before a tick: until the device has made all but the last :data:`AHEAD` of those before."""
        while len(self._marks) > AHEAD:
            self._marks.popleft().synchronize()

    def mark(self) -> None:
        """After a tick.  On a CPU a tick is made when it returns."""
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
