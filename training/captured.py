"""A function of tensors as CUDA graphs, one for every set of shapes that it meets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .task import Drawn

WARM_UP = 3  # calls before the capture: they allocate what stays, and compile what compiles


class Captured:
    """Calls ``function(drawn)`` on a device, from the fourth call with the same shapes on as the replay of a graph.

    What ``function`` changes must stay where it is; what it returns, scalars by name, is copied.  All calls of a ``stream``
    follow one another: gradients are added up on the stream that the first call met.
    """

    def __init__(self, function: Callable[[Drawn], dict[str, Tensor]], stream: Any):
        self.function, self.stream = function, stream
        self._shapes: dict[tuple, _OneShape] = {}

    @property
    def graphs(self) -> int:
        """How many graphs there are."""
        return sum(each.graph is not None for each in self._shapes.values())

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        """``drawn`` are tensors on the CPU, which may be changed after the call."""
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in drawn)
        if shapes not in self._shapes:
            self._shapes[shapes] = _OneShape(self.function, drawn, self.stream)
        return self._shapes[shapes](drawn)


class _OneShape:
    def __init__(self, function: Callable[[Drawn], dict[str, Tensor]], drawn: Drawn, stream: Any):
        self.function, self.stream, self.calls = function, stream, 0
        self.inputs = tuple(torch.empty_like(tensor, device=stream.device) for tensor in drawn)  # where the graph reads them
        self.staging = tuple(torch.empty_like(tensor).pin_memory() for tensor in drawn)
        self.copied = torch.cuda.Event()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        self.calls += 1
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self._load(drawn)
            if self.calls <= WARM_UP:
                outputs = self.function(self.inputs)
            else:
                if self.graph is None:
                    self._capture()
                self.graph.replay()  # type: ignore[union-attr]
                outputs = {name: value.clone() for name, value in self.outputs.items()}
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def _load(self, drawn: Drawn) -> None:
        """Put what is read where the graph finds it; the host waits for the copies of the call before alone."""
        self.copied.synchronize()
        for tensor, pinned, static in zip(drawn, self.staging, self.inputs, strict=True):
            pinned.copy_(tensor)
            static.copy_(pinned, non_blocking=True)
        self.copied.record()

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.outputs = self.function(self.inputs)
        self.graph = graph
