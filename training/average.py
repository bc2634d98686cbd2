"""The exponential moving average of the weights that are trained, and nothing of those that are not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """``average = decay * average + (1 - decay) * weight`` for every parameter of ``network`` that takes gradients.

    The weights after the first step begin it.  ``updates`` counts the steps; who replays an update as a graph counts them.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self.values = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.updates = 0
        self._blend = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in; no host value is read but ``updates``."""
        averages, weights = list(self.values.values()), list(self.parameters.values())
        if self.updates:
            self._blend(averages, weights, None)
        else:
            torch._foreach_copy_(averages, weights)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """While entered, the network holds the averages where its weights were; then these again, bit for bit."""
        weights = [parameter.clone() for parameter in self.parameters.values()]
        torch._foreach_copy_(list(self.parameters.values()), list(self.values.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(list(self.parameters.values()), weights)

    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Go on from the averages of another run; raises ``KeyError`` if a parameter is missing."""
        for name, value in self.values.items():
            value.copy_(values[name])
        self.updates = updates
