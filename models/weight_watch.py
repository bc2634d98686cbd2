"""Whether weights are as they were: for what a run computes from them once, and looks up at every call."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

SAMPLE = 8  # values of each tensor


class WeightWatch:
    """Compares tensors with what they were when it was made: which they are, where they lie, how often they were written to.

    PyTorch does not count what is written through ``.data``, so a sample of the values is compared as well, which waits for
    the device.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]):
        """``tensors`` is asked again at every comparison: parameters may be replaced."""
        self._tensors = tensors
        now = list(tensors())
        self._marks, self._values = _marks(now), _sampled(now)

    def unchanged(self, values: bool = True) -> bool:
        """Whether nothing has changed; without ``values``, as far as the host can tell without waiting for the device."""
        now = list(self._tensors())
        return _marks(now) == self._marks and (not values or _equal(_sampled(now), self._values))


def _marks(tensors: list[Tensor]) -> list[tuple]:
    """Of each tensor its storage, dtype and count of writes; tensors of inference mode have no count."""
    return [(tensor.data_ptr(), tensor.dtype, None if tensor.is_inference() else tensor._version) for tensor in tensors]


@torch.no_grad()
def _sampled(tensors: list[Tensor]) -> Tensor | None:
    """Evenly spaced values of every tensor [S]; None where there is none."""
    if not tensors:
        return None
    flat = [tensor.view(-1) if tensor.is_contiguous() else tensor[0].reshape(-1) for tensor in tensors]
    return torch.cat([values[:: max(1, len(values) // SAMPLE)] for values in flat])


def _equal(found: Tensor | None, wanted: Tensor | None) -> bool:
    return found is wanted or (found is not None and wanted is not None and torch.equal(found, wanted))
