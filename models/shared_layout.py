"""Rows of many runs in one forward: which do the same, where each begins, and where it is read.

The rows of a :class:`.rows.RowLayout` stand in blocks of as many rows as there are samples.  Runs that share a forward need
rows of their own: here rows that do the same operations are one group, of as many rows as there are such branches among all
runs, whatever their conditions; conditional and unconditional rows are one group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .rows import FULL, SKIP, RowLayout, Segment


@dataclass(frozen=True)
class RowGroup:
    """``count`` rows that do the same ``operations``, one per layer that runs.

    Before layer ``start`` they are copies of rows of groups before theirs; with 0 they begin as embedded states.
    """

    operations: tuple[str, ...]
    start: int
    count: int


@dataclass(frozen=True)
class Tap:
    """``count`` rows that are read after ``layer`` blocks, by an early-exit head."""

    layer: int
    count: int


@dataclass(frozen=True)
class SharedLayout:
    """The shapes of one forward: groups of rows by the layer at which they begin, and what is read of them early.

    After the last block every row is read: output i is row i, and those of ``taps`` follow.
    """

    groups: tuple[RowGroup, ...]
    taps: tuple[Tap, ...]
    depth: int

    def __post_init__(self):
        starts = [group.start for group in self.groups]
        if not starts or starts[0] != 0 or starts != sorted(starts):
            raise ValueError(f"groups of rows stand by the layer at which they begin, the first at 0; got {starts}")

    @cached_property
    def rows(self) -> int:
        """All rows."""
        return sum(group.count for group in self.groups)

    @cached_property
    def embedded(self) -> int:
        """The rows that begin as embedded states: the first ones."""
        return sum(group.count for group in self.groups if group.start == 0)

    @cached_property
    def outputs(self) -> int:
        """What is read: every row at the end, and the taps."""
        return self.rows + sum(tap.count for tap in self.taps)

    @cached_property
    def places(self) -> tuple[slice, ...]:
        """Where each group lies among the rows."""
        ends = np.cumsum([group.count for group in self.groups]).tolist()
        return tuple(slice(end - group.count, end) for end, group in zip(ends, self.groups, strict=True))

    def forks(self, layer: int) -> list[slice]:
        """The rows that begin before this layer as copies of others."""
        pairs = zip(self.places, self.groups, strict=True)
        return [place for place, group in pairs if group.start == layer > 0]

    def tap(self, layer: int) -> slice | None:
        """Which outputs are read early, after ``layer`` blocks; None for none."""
        first = self.rows
        for tap in self.taps:
            if tap.layer == layer:
                return slice(first, first + tap.count)
            first += tap.count
        return None

    @cached_property
    def layers(self) -> tuple[tuple[tuple[slice, tuple[Segment, ...]], ...], ...]:
        """For each layer, ranges of rows that run through it together, and the operations in each; none where all are full."""
        return tuple(tuple(self._runs(layer)) for layer in range(self.depth))

    def _runs(self, layer: int) -> list[tuple[slice, tuple[Segment, ...]]]:
        found: list[list[Segment]] = []
        for group, place in zip(self.groups, self.places, strict=True):
            if not group.start <= layer < len(group.operations) or group.operations[layer] == SKIP:
                continue
            segment = Segment(place.start, place.stop, group.operations[layer])
            if found and found[-1][-1].stop == segment.start:
                found[-1].append(segment)
            else:
                found.append([segment])
        runs = []
        for segments in found:
            first = segments[0].start
            plain = all(segment.operation == FULL for segment in segments)
            own = () if plain else tuple(Segment(s.start - first, s.stop - first, s.operation) for s in segments)
            runs.append((slice(first, segments[-1].stop), own))
        return runs


@dataclass(frozen=True)
class RunRows:
    """What one run needs of a forward: its layout for one sample, the state that its rows begin as, and where it is.

    ``entries`` is the row of the modulation table for each of its row blocks, and ``conditions`` the place of the condition.
    """

    layout: RowLayout
    state: int
    scale: float
    entries: tuple[int, ...]
    conditions: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SharedRowsOfCall:
    """The layout of a forward and its indices, all int64: what is padded begins as the state ``spare``, and nobody reads it.

    state, scale [embedded]; entry, condition [R]; source [R - embedded]; tapped [outputs - R], the rows that are read early.
    ``outputs[i]`` has for run i the place of each readout of its layout; ``used`` counts the rows that runs need.
    """

    layout: SharedLayout
    state: np.ndarray
    scale: np.ndarray
    entry: np.ndarray
    condition: np.ndarray
    source: np.ndarray
    tapped: np.ndarray
    outputs: tuple[tuple[int, ...], ...]
    used: int


def shared_rows(runs: Sequence[RunRows], depth: int, spare: int, padded: Callable[[int], int]) -> SharedRowsOfCall:
    """The rows of all ``runs`` in one forward; ``padded`` says how many rows stand for so many."""
    members: dict[tuple[int, tuple[str, ...]], list[tuple[int, int]]] = {}  # of a group: run, and which of its row blocks
    for i, run in enumerate(runs):
        for block, path in enumerate(run.layout.blocks):
            members.setdefault((run.layout.starts[block], path.operations), []).append((i, block))
    order = sorted(members, key=lambda key: (key[0], -len(key[1]), key[1] != (FULL,) * depth))
    groups = tuple(RowGroup(operations, start, padded(len(members[start, operations]))) for start, operations in order)
    place: dict[tuple[int, int], int] = {}
    first = 0
    for key, group in zip(order, groups, strict=True):
        place |= {member: first + k for k, member in enumerate(members[key])}
        first += group.count
    tapped: dict[int, list[tuple[int, int]]] = {}  # by layer: run, and which of its readouts
    outputs = [[0] * len(run.layout.readouts) for run in runs]
    for i, run in enumerate(runs):
        for k, readout in enumerate(run.layout.readouts):
            outputs[i][k] = place[i, readout.row]
            if readout.layer < depth:
                tapped.setdefault(readout.layer, []).append((i, k))
    taps = tuple(Tap(layer, padded(len(tapped[layer]))) for layer in sorted(tapped))
    layout = SharedLayout(groups, taps, depth)
    state, scale = np.full(layout.embedded, spare), np.ones(layout.embedded)
    entry, condition = np.zeros((2, layout.rows), dtype=np.int64)
    source = np.zeros(layout.rows - layout.embedded, dtype=np.int64)
    for (i, block), row in place.items():
        run = runs[i]
        entry[row], condition[row] = run.entries[block], run.conditions[block]
        if row < layout.embedded:
            state[row], scale[row] = run.state, run.scale
        else:
            source[row - layout.embedded] = place[i, run.layout.sources[block]]
    read = np.zeros(layout.outputs - layout.rows, dtype=np.int64)
    for tap in taps:
        first = layout.tap(tap.layer).start
        for number, (i, k) in enumerate(tapped[tap.layer], start=first):
            read[number - layout.rows], outputs[i][k] = outputs[i][k], number
    made = tuple(map(tuple, outputs))
    return SharedRowsOfCall(layout, state, scale, entry, condition, source, read, made, used=len(place))
