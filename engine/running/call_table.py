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
        self.rows = torch.zeros(1 if shared else batch, calls, width, dtype=dtype, device=device)

    def fill(self, values: Sequence[np.ndarray]) -> None:
        """Put ``values`` [N, W], one for all samples or one for each, into the first rows."""
        host = torch.from_numpy(np.stack(values)).to(self.rows.dtype)  # not every device has fp64
        self.rows[:, : host.shape[1]].copy_(host)

    def at(self, kernels: Kernels, call: Tensor) -> Tensor:
        """The row of every sample, [B, W]; call [B] int64."""
        return kernels.gather_rows(self.lookup, call)

    @property
    def lookup(self) -> Tensor:
        """The table that samples share, [calls, W], or [B, calls, W] of their own."""
        return self.rows[0] if len(self.rows) == 1 else self.rows
