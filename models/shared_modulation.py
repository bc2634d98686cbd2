"""The modulation of runs that share forwards: for every run and condition, of its next calls."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LARGEST = 512 * 2**20  # bytes of a table
LEAST_AHEAD, MOST_AHEAD = 4, 64  # calls


class SharedModulation:
    """``rows`` [runs * conditions * ahead, W]: of each run's conditions the next ``ahead`` calls, each at ``call % ahead``."""

    def __init__(self, like: Tensor, width: int, runs: int, conditions: int):
        """Room for so many runs of so many conditions; dtype and device are those of ``like``."""
        self.conditions, self.ahead = conditions, calls_ahead(runs * conditions, width * like.element_size())
        self.rows = like.new_empty(runs * conditions * self.ahead, width)
        self.rows[:1].zero_()  # of rows that nobody reads
        self._first = np.zeros(runs, dtype=np.int64)
        self._times: list[np.ndarray] = [np.zeros(0)] * runs
        self._own = [0] * runs

    def begin(self, run: int, times: np.ndarray, conditions: int) -> None:
        """A run with these network times [N], one for each of its calls, and so many conditions takes the place ``run``."""
        if conditions > self.conditions:
            raise ValueError(f"a run that shares forwards has up to {self.conditions} conditions, got {conditions}")
        self._times[run], self._own[run], self._first[run] = times, conditions, -1

    def entry(self, run: int, condition: int, call: int) -> int:
        """Which row is that of a run's condition at a call."""
        return (run * self.conditions + condition) * self.ahead + call % self.ahead

    def look_ahead(self, run: int, call: int, compute: Callable[[Tensor, Tensor], None]) -> None:
        """Let the table have a run's ``call``.

        If it lacks it, ``compute(times [n], into [conditions, n, W])`` fills in the next ones, in at most two parts.
        """
        first, times = self._first[run], self._times[run]
        if first >= 0 and first <= call < first + self.ahead:
            return
        self._first[run] = call
        own = self.rows.view(-1, self.conditions, self.ahead, self.rows.shape[1])[run, : self._own[run]]
        turn = (call // self.ahead + 1) * self.ahead  # where the ring begins anew
        for part in (slice(call, min(turn, len(times))), slice(turn, min(call + self.ahead, len(times)))):
            if part.start < part.stop:
                values = torch.from_numpy(times[part]).to(self.rows.device, torch.float32)
                place = part.start % self.ahead
                compute(values, own[:, place : place + len(values)])

    def forget(self) -> None:
        """Hold nothing any more: the weights that it was computed with have changed."""
        self._first[:] = -1


def calls_ahead(conditions: int, row_bytes: int) -> int:
    """How many calls of every condition a table holds."""
    return max(LEAST_AHEAD, min(MOST_AHEAD, LARGEST // (conditions * row_bytes)))
