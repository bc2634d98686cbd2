"""Rows at given network times, without a run around them."""

import torch

from segue.models.start_rows import Clock


def at_times(index: torch.Tensor) -> Clock:
    """Each sample at the network time of its ``index`` [B] int64: call and time have one numbering."""
    return Clock(index, torch.arange(int(index.max()) + 1, device=index.device))
