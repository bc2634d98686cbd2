"""A backend or a configuration on one case of the catalogue: whether its numbers are right, and how long it takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .catalogue import Case, Factory
from .contracts import magnitude_of_summands
from .judgement import error_bound

CACHE_BYTES = 256 * 2**20  # well past the last cache of any card
MAX_SETS = 32
REPLAYS, LEAST_SECONDS = 5, 0.01  # of one measurement, whichever takes longer
MAX_REPLAYS = 200


class Trial:
    """One case with its arguments and its truth, for any number of functions that claim to compute it."""

    def __init__(self, case: Case, make: Factory):
        self.case, self.make = case, make

    @cached_property
    def _bounds(self) -> list[tuple[Tensor, float]]:
        """For each output: what it is in fp64, and how far a kernel's may be from it."""
        case = self.case
        truths = _outputs(case.reference, tree_map(_doubled, case.arguments(self.make)))
        eagers = _outputs(case.reference, case.arguments(self.make))
        summands = magnitude_of_summands(case.operation, case.arguments(self.make))
        pairs = zip(truths, eagers, strict=True)
        return [(truth.double(), float(error_bound(eager, truth, summands))) for truth, eager in pairs]

    def agrees(self, function: Callable) -> bool:
        """It errs against fp64 at most twice as much as the reference does, plus two roundings of its own output."""
        outputs = _outputs(function, self.case.arguments(self.make))
        return all(_largest(ours.double() - truth) <= bound for ours, (truth, bound) in zip(outputs, self._bounds, strict=True))

    @cached_property
    def _sets(self) -> list[tuple[Any, ...]]:
        """Enough independent arguments that they do not fit a cache, at least two."""
        first = self.case.arguments(self.make)
        held = {x.data_ptr(): x.numel() * x.element_size() for x in tree_leaves(first) if isinstance(x, Tensor)}
        count = min(MAX_SETS, max(2, math.ceil(CACHE_BYTES / max(1, sum(held.values())))))
        factories = (Factory(self.make.device, self.make.dtype, self.make.seed + index) for index in range(1, count))
        return [first, *map(self.case.arguments, factories)]

    def seconds(self, function: Callable) -> float:
        """Median time of a call, replayed from a CUDA graph of one call on every set of arguments."""
        replay = captured(function, self._sets)
        replay()
        times: list[float] = []
        while len(times) < REPLAYS or (math.fsum(times) < LEAST_SECONDS and len(times) < MAX_REPLAYS):
            times.append(elapsed(replay))
        return statistics.median(times) / len(self._sets)


def one_pass(function: Callable, sets: list[tuple[Any, ...]]) -> Callable[[], None]:
    """One call on every set.

    Results are kept to the end of a pass: a freed one would be the memory of the next, still in the cache.
    """

    def run() -> None:
        kept = [function(*arguments) for arguments in sets]
        kept.clear()

    return run


def captured(function: Callable, sets: list[tuple[Any, ...]]) -> Callable[[], None]:
    """:func:`one_pass` as a CUDA graph.  Raises ``RuntimeError`` for a function that cannot be captured."""
    run = one_pass(function, sets)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(*sets[0])  # everything is compiled before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


def elapsed(replay: Callable[[], None]) -> float:
    """Seconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _largest(x: Tensor) -> float:
    """The largest magnitude; NaN where one element is."""
    return float(x.abs().max())


def _doubled(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _outputs(function: Callable, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Everything floating-point that a call returns or may have written: results and tensor arguments."""
    result = function(*arguments)
    return [x for x in tree_leaves((result, arguments)) if isinstance(x, Tensor) and x.is_floating_point()]
