"""Which samples of a batch need another forward, gathered in few sizes: every size is one CUDA graph and one compilation."""

from dataclasses import dataclass

import torch
from torch import Tensor

SIZES_PER_BATCH = 16


@dataclass(frozen=True, eq=False)
class WeakRows:
    """The samples of the extra forward, ``rows`` [K] int64, and where in it each sample lies, ``slot`` [B] int64.

    Rows beyond those that are needed repeat the first, and no slot names them.  A sample without a row has the slot 0.
    """

    rows: Tensor
    slot: Tensor

    @classmethod
    def of(cls, needed: Tensor, padded: bool) -> "WeakRows":
        """needed [B] bool.  ``padded``: K is 0 or one of at most 16 sizes, else the number of samples that are needed."""
        batch, rows = len(needed), needed.nonzero()[:, 0]
        slot = torch.zeros(batch, dtype=torch.int64)
        slot[rows] = torch.arange(len(rows))
        if padded and len(rows):
            rows = torch.cat([rows, rows[:1].expand(padded_size(len(rows), batch) - len(rows))])
        return cls(rows, slot)


def padded_size(count: int, batch: int) -> int:
    """The smallest of the sizes of a batch that holds ``count`` samples."""
    unit = -(-batch // SIZES_PER_BATCH)
    return min(batch, -(-count // unit) * unit)
