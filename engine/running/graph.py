"""Capture and replay: one CUDA graph per live set, one memory pool and one stream for all of them.

A step reads everything that changes between calls from device tables, so a graph stays valid for any prompt, seed, scale,
window, noise level and step count; only another shape, branch set or weight storage needs another.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

WARM_UP_STEPS = 2  # the first compiles kernels and fills caches, the second shows that nothing is left to compile


@dataclass(frozen=True)
class CapturedStep:
    """A replayable step and the device memory that its capture took, in bytes."""

    replay: Callable[[], None]
    memory: int


class CudaCapture:
    """Captures functions on one side stream into one shared pool of ``device``, and replays them one at a time.

    The pool's memory is that of whichever graph runs, so threads take turns, and their streams wait for each other.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self._lock = threading.Lock()
        self._last = torch.cuda.current_stream(device)

    @contextmanager
    def _turn(self) -> Iterator[torch.cuda.Stream]:
        """The pool is this thread's, on its current stream, which what other streams replayed precedes."""
        with self._lock:
            current = torch.cuda.current_stream(self.device)
            if current != self._last:
                current.wait_stream(self._last)
            self._last = current
            yield current

    def __call__(self, function: Callable[[], None]) -> CapturedStep:
        """Warm ``function`` up on the capture stream, then capture it."""
        with self._turn() as caller:
            self.stream.wait_stream(caller)
            try:
                return self._warmed_and_captured(function)
            finally:
                caller.wait_stream(self.stream)  # also after a failure: the state is put back on the caller's stream

    def _replay(self, graph: torch.cuda.CUDAGraph) -> None:
        with self._turn():
            graph.replay()

    def _warmed_and_captured(self, function: Callable[[], None]) -> CapturedStep:
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP_STEPS):
                function()
        self.stream.synchronize()
        torch.cuda.empty_cache()  # as entering a capture does: what it frees is not the capture's
        before = torch.cuda.memory_reserved(self.device)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads (a data loader, another engine) may use CUDA during the capture
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            function()
        return CapturedStep(partial(self._replay, graph), torch.cuda.memory_reserved(self.device) - before)


@dataclass
class StepGraphs:
    """The captured steps of one program.  ``capture`` turns a function into a :class:`CapturedStep`."""

    program: Any
    capture: Callable[[Callable[[], None]], CapturedStep]
    steps: dict[tuple[int, ...], CapturedStep] = field(default_factory=dict)

    def advance(self, live: tuple[int, ...]) -> None:
        """One call with the branches ``live``: replayed, and captured first if need be."""
        if live not in self.steps:
            self.steps[live] = self._captured(live)
        self.steps[live].replay()

    def _captured(self, live: tuple[int, ...]) -> CapturedStep:
        """Warm-up runs the step for real, so the state is put back afterwards, also when the capture fails."""
        state = self.program.state()
        saved = [tensor.clone() for tensor in state]
        try:
            return self.capture(lambda: self.program.step_on_device(live))
        finally:
            for tensor, value in zip(state, saved, strict=True):
                tensor.copy_(value)

    def explain(self) -> list[str]:
        names = self.program.key.branches
        return [
            f"graph for {' | '.join(str(names[i]) for i in live)}: {step.memory / 2**20:.1f} MiB"
            for live, step in self.steps.items()
        ]
