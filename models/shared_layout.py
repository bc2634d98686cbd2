"""Rows of many runs in one forward: which do the same, where each begins, and where it is read.

The rows of a :class:`.rows.RowLayout` stand in blocks of as many rows as there are samples.  Runs that share a forward need
rows of their own: here rows that do the same operations are one group, of as many rows as there are such branches among all
runs, whatever their conditions; conditional and unconditional rows are one group.  Rows whose images meet a second text, of
normalized attention guidance, are groups of their own: each has two rows of text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from segue.kernels.normalized_attention import NEUTRAL

from .rows import FULL, SKIP, RowLayout, Segment, group_rows, merged


@dataclass(frozen=True)
class RowGroup:
    """``count`` rows that do the same ``operations``, one per layer that runs.

    Before layer ``start`` they are copies of rows of groups before theirs; with 0 they begin as embedded states.  ``joined``:
    their images meet a second text too, whose row is behind that of their own.
    """

    operations: tuple[str, ...]
    start: int
    count: int
    joined: bool = False

    @property
    def texts(self) -> int:
        """The rows of text of all of them."""
        return self.count * (1 + self.joined)


@dataclass(frozen=True)
class Tap:
    """``count`` rows that are read after ``layer`` blocks, by an early-exit head."""

    layer: int
    count: int


@dataclass(frozen=True)
class BlockRows:
    """Rows that go through a block together, the rows of their texts, and the operations, as of :func:`.rows.group_rows`."""

    rows: slice
    texts: slice
    segments: tuple[Segment, ...]


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
    def texts(self) -> int:
        """All rows of text: as many as there are rows, and one more for each that meets two."""
        return sum(group.texts for group in self.groups)

    @cached_property
    def embedded_texts(self) -> int:
        """The rows of text that begin as embedded prompts: the first ones."""
        return sum(group.texts for group in self.groups if group.start == 0)

    @cached_property
    def is_joined(self) -> bool:
        """Whether some images meet two texts."""
        return any(group.joined for group in self.groups)

    @cached_property
    def outputs(self) -> int:
        """What is read: every row at the end, and the taps."""
        return self.rows + sum(tap.count for tap in self.taps)

    @cached_property
    def places(self) -> tuple[slice, ...]:
        """Where each group lies among the rows."""
        return _places([group.count for group in self.groups])

    @cached_property
    def text_places(self) -> tuple[slice, ...]:
        """Where the texts of each group lie among the rows of text."""
        return _places([group.texts for group in self.groups])

    def forks(self, layer: int) -> list[slice]:
        """The rows that begin before this layer as copies of others."""
        return self._beginning(self.places, layer)

    def text_forks(self, layer: int) -> list[slice]:
        """The same of the rows of text."""
        return self._beginning(self.text_places, layer)

    def _beginning(self, places: Sequence[slice], layer: int) -> list[slice]:
        pairs = zip(places, self.groups, strict=True)
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
    def layers(self) -> tuple[tuple[BlockRows, ...], ...]:
        """What runs through each layer."""
        return tuple(tuple(self._block_rows(layer)) for layer in range(self.depth))

    def _block_rows(self, layer: int) -> list[BlockRows]:
        found: list[list[int]] = []  # groups next to each other
        for i, group in enumerate(self.groups):
            if not group.start <= layer < len(group.operations) or group.operations[layer] == SKIP:
                continue
            if found and found[-1][-1] == i - 1:
                found[-1].append(i)
            else:
                found.append([i])
        made = []
        for members in found:
            rows, segments = group_rows(merged(self._segment(i, layer) for i in members), 1)
            first, last = self.text_places[members[0]], self.text_places[members[-1]]
            made.append(BlockRows(rows, slice(first.start, last.stop), segments))
        return made

    def _segment(self, group: int, layer: int) -> Segment:
        place, own = self.places[group], self.groups[group]
        return Segment(place.start, place.stop, own.operations[layer], own.joined)


@dataclass(frozen=True)
class ConditionPlace:
    """Of one condition at a call: its row of the modulation table, and where among all conditions it is."""

    entry: int
    condition: int


@dataclass(frozen=True)
class RunRows:
    """What one run needs of a forward: its layout for one sample, the state that its rows begin as, and where it is.

    ``conditions`` has for each of its row blocks that of its own, and that of a second text if one is joined to it;
    ``normalized`` are the scale, tau and alpha of normalized attention guidance.
    """

    layout: RowLayout
    state: int
    scale: float
    conditions: tuple[tuple[ConditionPlace, ...], ...]
    normalized: tuple[float, ...] = NEUTRAL


@dataclass(frozen=True, eq=False)
class SharedRowsOfCall:
    """The layout of a forward and its indices, all int64: what is padded begins as the state ``spare``, and nobody reads it.

    state, scale [embedded]; entry [R]; source [R - embedded]; tapped [outputs - R], the rows that are read early; of the rows
    of text text_entry [R'], text_condition [embedded texts], text_source [R' - embedded texts]; normalized [R, 3].
    ``outputs[i]`` has for run i the place of each readout of its layout; ``used`` counts the rows that runs need.
    """

    layout: SharedLayout
    state: np.ndarray
    scale: np.ndarray
    entry: np.ndarray
    source: np.ndarray
    tapped: np.ndarray
    text_entry: np.ndarray
    text_condition: np.ndarray
    text_source: np.ndarray
    normalized: np.ndarray
    outputs: tuple[tuple[int, ...], ...]
    used: int


def shared_rows(runs: Sequence[RunRows], depth: int, spare: int, padded: Callable[[int], int]) -> SharedRowsOfCall:
    """The rows of all ``runs`` in one forward; ``padded`` says how many rows stand for so many."""
    groups, place, text = _grouped(runs, depth, padded)
    tapped: dict[int, list[tuple[int, int]]] = {}  # by layer: run, and which of its readouts
    outputs = [[0] * len(run.layout.readouts) for run in runs]
    for i, run in enumerate(runs):
        for k, readout in enumerate(run.layout.readouts):
            outputs[i][k] = place[i, readout.row]
            if readout.layer < depth:
                tapped.setdefault(readout.layer, []).append((i, k))
    taps = tuple(Tap(layer, padded(len(tapped[layer]))) for layer in sorted(tapped))
    layout = SharedLayout(groups, taps, depth)
    read = np.zeros(layout.outputs - layout.rows, dtype=np.int64)
    for tap in taps:
        first = layout.tap(tap.layer).start
        for number, (i, k) in enumerate(tapped[tap.layer], start=first):
            read[number - layout.rows], outputs[i][k] = outputs[i][k], number
    indices = _indices(runs, layout, place, text, spare)
    return SharedRowsOfCall(layout, tapped=read, outputs=tuple(map(tuple, outputs)), used=len(place), **indices)


Member = tuple[int, int]  # a run, and which of its row blocks


def _grouped(
    runs: Sequence[RunRows], depth: int, padded: Callable[[int], int]
) -> tuple[tuple[RowGroup, ...], dict[Member, int], dict[Member, int]]:
    """The groups of rows, the row of every row block, and the row of its own text, behind which a second one is."""
    members: dict[tuple[int, tuple[str, ...], bool], list[Member]] = {}
    for i, run in enumerate(runs):
        for block, kind in enumerate(run.layout.kinds):
            members.setdefault(kind, []).append((i, block))
    order = sorted(members, key=lambda kind: (kind[0], -len(kind[1]), kind[1] != (FULL,) * depth, kind[2]))
    groups: list[RowGroup] = []
    place: dict[Member, int] = {}
    text: dict[Member, int] = {}
    first = first_text = 0
    for start, operations, joined in order:
        own = members[start, operations, joined]
        group = RowGroup(operations, start, padded(len(own)), joined)
        place |= {member: first + k for k, member in enumerate(own)}
        text |= {member: first_text + k * (1 + joined) for k, member in enumerate(own)}
        first, first_text = first + group.count, first_text + group.texts
        groups.append(group)
    return tuple(groups), place, text


def _indices(
    runs: Sequence[RunRows], layout: SharedLayout, place: Mapping[Member, int], text: Mapping[Member, int], spare: int
) -> dict[str, np.ndarray]:
    """What the rows and their texts begin from, and what belongs to each of them."""

    def zeros(count: int) -> np.ndarray:
        return np.zeros(count, dtype=np.int64)

    state, scale = np.full(layout.embedded, spare), np.ones(layout.embedded)
    entry, source = zeros(layout.rows), zeros(layout.rows - layout.embedded)
    text_entry, text_condition = zeros(layout.texts), zeros(layout.embedded_texts)
    text_source, normalized = zeros(layout.texts - layout.embedded_texts), np.tile(NEUTRAL, (layout.rows, 1))
    for (i, block), row in place.items():
        run, forked = runs[i], row >= layout.embedded
        entry[row], normalized[row] = run.conditions[block][0].entry, run.normalized
        if forked:
            source[row - layout.embedded] = place[i, run.layout.sources[block]]
        else:
            state[row], scale[row] = run.state, run.scale
        for k, own in enumerate(run.conditions[block]):
            at = text[i, block] + k
            text_entry[at] = own.entry
            if forked:
                text_source[at - layout.embedded_texts] = text[i, run.layout.sources[block]] + k
            else:
                text_condition[at] = own.condition
    own = {"state": state, "scale": scale, "entry": entry, "source": source, "normalized": normalized}
    return own | {"text_entry": text_entry, "text_condition": text_condition, "text_source": text_source}


def _places(counts: Sequence[int]) -> tuple[slice, ...]:
    ends = np.cumsum(counts).tolist()
    return tuple(slice(end - count, end) for end, count in zip(ends, counts, strict=True))
