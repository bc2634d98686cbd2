"""Tables of numbers on the device with a row for every call, one table for all samples or one for each."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segue.kernels.record import Kernels


class CallTable:
    """``rows`` [S, calls, W], looked up by the call of every sample; S is 1 where all samples share them, else B.

    The first dimension costs no launch: a lookup is one gather by sample and call, and a shared table is a single one.
    """

    def __init__(
        self, shared: bool, batch: int, calls: int, width: int, *, device: torch.device, dtype: torch.dtype = torch.float32
    ):
        self.shared = shared
        self.rows = torch.zeros(1 if shared else batch, calls, width, dtype=dtype, device=device)

    def fill(self, values: Sequence[np.ndarray], beyond: float | Sequence[float] = 0.0) -> None:
        """Put ``values`` [N, W], one for all samples or one for each, into the first rows.

        Samples with rows of their own may have more or fewer: a run that is over goes on with the row ``beyond``.
        """
        calls = len(values[0]) if self.shared else self.rows.shape[1]
        host = np.empty((len(values), calls, self.rows.shape[2]))
        host[:] = beyond
        for own, rows in zip(host, values, strict=True):
            own[: len(rows)] = rows
        self.rows[:, :calls].copy_(torch.from_numpy(host).to(self.rows.dtype))  # not every device has fp64

    def at(self, kernels: Kernels, call: Tensor) -> Tensor:
        """The row of every sample, [B, W]; call [B] int64."""
        return kernels.gather_rows(self.lookup, call)

    @property
    def lookup(self) -> Tensor:
        """The table that samples share, [calls, W], or [B, calls, W] of their own."""
        return self.rows[0] if self.shared else self.rows
