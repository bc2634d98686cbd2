"""The modulation of a run's rows: of all its calls, or, where that would be large, of the next calls of every sample."""

import numpy as np
import torch
from torch import Tensor

from segue.kernels.record import Kernels

from .start_rows import Clock, taken_slots

LARGEST = 256 * 2**20  # bytes of a table; one that would be larger is a ring
LEAST_AHEAD = 4  # times that a ring holds at least: the calls of a step may be of two


class ModulationTable:
    """``rows`` [ahead * conditions, W]: row = time % ahead * conditions + condition.

    A whole table has all times of a run and an entry for each distinct condition.  A ring has an entry for every slot and
    sample, of that sample's next ``ahead`` times; ``held`` says of which, and a row that is not there is read as NaN.
    ``index`` [slots, B] int64 is the condition of each slot and sample.
    """

    def __init__(self, like: Tensor, width: int, times: int, conditions: int, slots: int, batch: int):
        """Capacity for so many distinct times and conditions; dtype and device are those of ``like``."""
        row = width * like.element_size()
        self.ahead, self.conditions = times, conditions
        self.is_ring = times * conditions * row > LARGEST
        if self.is_ring:
            self.conditions = slots * batch
            self.ahead = min(times, max(LEAST_AHEAD, LARGEST // (self.conditions * row)))
        self.rows = like.new_zeros(self.ahead * self.conditions, width)
        self.index = torch.zeros(slots, batch, dtype=torch.int64, device=like.device)
        self.held: Tensor | None = None
        if self.is_ring:
            self.index.copy_(torch.arange(slots * batch).view(slots, batch))
            self.held = torch.full((len(self.rows),), -1, dtype=torch.int64, device=like.device)
        self._first: np.ndarray | None = None
        self._count = 0

    @property
    def view(self) -> Tensor:
        """[ahead, conditions, W]"""
        return self.rows.view(self.ahead, self.conditions, -1)

    def begin(self, count: int) -> None:
        """Hold nothing: a run of ``count`` times is loaded."""
        self._first, self._count = None, count

    def look_ahead(self, time: np.ndarray) -> tuple[slice, np.ndarray] | None:
        """Of a ring: the part of :attr:`view` to compute now, and the time of each of its entries [part, conditions].

        None where all samples, which are at ``time`` [B], find theirs.  All samples' entries are made anew together: they read
        the same weights.
        """
        if not self.is_ring or (self._first is not None and ((time >= self._first) & (time < self._first + self.ahead)).all()):
            return None
        self._first = time.copy()
        own = time + (np.arange(self.ahead)[:, None] - time) % self.ahead  # [ahead, B], each in its place
        entries = np.tile(own, (1, self.conditions // len(time)))
        self.held.copy_(torch.from_numpy(entries.reshape(-1)))
        needed = np.flatnonzero((own < self._count).any(axis=1))
        part = slice(int(needed[0]), int(needed[-1]) + 1)
        return part, np.minimum(entries[part], self._count - 1)

    def start(self, kernels: Kernels, clock: Clock, slots: tuple[int, ...], out: Tensor) -> Tensor:
        """The modulation of row blocks that take ``slots`` at each sample's call, [J * B, W]: the first rows of ``out``."""
        batch = self.index.shape[1]
        for rows, condition in taken_slots(self.index, slots):
            part = out[rows.start * batch : rows.stop * batch]
            kernels.gather_modulation(self.rows, clock.times, clock.call, condition, self.conditions, part, self.held)
        return out[: len(slots) * batch]
