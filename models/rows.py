"""Which rows run at which layer: branches as rows of one batch, weak rows forking where they first differ.

A branch that runs a network is a :class:`Path`: a condition and one operation per layer.  Paths with the same condition
share their common prefix of operations, so the layout is a trie; a path that is a prefix of another (an early exit of the
conditional branch) costs no rows at all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from segue.kernels.attention import PERTURBATIONS

FULL = "full"
SKIP = "skip"
GATED = "gated"  # as full, with gates that a call may close
NO_GATE = -1
OPERATIONS = (FULL, SKIP, GATED, *PERTURBATIONS)


@dataclass(frozen=True)
class Path:
    """One branch through one network: ``condition`` is a slot index, ``operations`` has one entry per layer that runs.

    ``gate``: which of a call's lists of open blocks holds for the layers that are gated.
    """

    condition: int
    operations: tuple[str, ...]
    gate: int = NO_GATE

    @classmethod
    def full(cls, condition: int, depth: int) -> "Path":
        return cls(condition, (FULL,) * depth)

    def common_prefix(self, other: "Path") -> int:
        """Number of leading layers whose result the two paths share."""
        if self.condition != other.condition:
            return 0
        length = 0
        for mine, theirs in zip(self.operations, other.operations, strict=False):
            if mine != theirs or (mine == GATED and self.gate != other.gate):
                break
            length += 1
        return length


@dataclass(frozen=True)
class Fork:
    """Row block ``target`` starts as a copy of row block ``source``."""

    source: int
    target: int


@dataclass(frozen=True)
class Segment:
    """Contiguous row blocks ``[start, stop)`` that do the same operation; ``joined``: their images meet a second text too."""

    start: int
    stop: int
    operation: str
    joined: bool = False

    def rows(self, batch: int, origin: int = 0) -> "Segment":
        """The same range in rows instead of row blocks of ``batch`` rows, counted from row block ``origin``."""
        return Segment((self.start - origin) * batch, (self.stop - origin) * batch, self.operation, self.joined)

    @property
    def texts(self) -> int:
        """Texts beside each image."""
        return 1 + self.joined


def merged(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Adjacent segments with those that do the same as one."""
    found: list[Segment] = []
    for segment in segments:
        if found and (found[-1].operation, found[-1].joined) == (segment.operation, segment.joined):
            found[-1] = replace(found[-1], stop=segment.stop)
        else:
            found.append(segment)
    return tuple(found)


def group_rows(group: tuple[Segment, ...], batch: int) -> tuple[slice, tuple[Segment, ...]]:
    """The rows of a group of adjacent segments, and the segments within them; none where every row does the full operation."""
    first, last = group[0].start, group[-1].stop
    plain = all(segment.operation == FULL and not segment.joined for segment in group)
    return slice(first * batch, last * batch), () if plain else tuple(segment.rows(batch, first) for segment in group)


@dataclass(frozen=True)
class LayerRows:
    """What happens at one layer: forks first, then each group of contiguous active row blocks as one batch."""

    forks: tuple[Fork, ...]
    groups: tuple[tuple[Segment, ...], ...]

    @property
    def active(self) -> int:
        return sum(segment.stop - segment.start for group in self.groups for segment in group)

    @property
    def joined(self) -> int:
        """The active row blocks whose images meet a second text."""
        return sum(segment.stop - segment.start for group in self.groups for segment in group if segment.joined)


@dataclass(frozen=True)
class Readout:
    """Row block ``row`` is read after ``layer`` blocks; ``head`` is None for the final head, else the exit layer."""

    row: int
    layer: int
    head: int | None


class RowLayout:
    """Row blocks (one per distinct path, each of B rows), and the work of every layer, for one network.

    ``paths`` are the live branches in order; ``readouts[i]`` tells where branch ``i`` is read.  Row blocks are ordered by
    the layer at which they start, so the rows active at a layer are a prefix wherever skip sets allow it.

    ``joined`` maps a condition slot to the slot of a second text, which the images of the first meet in every attention
    beside their own: normalized attention guidance.  Such a row block has two rows of text for each of the image.
    """

    def __init__(self, paths: tuple[Path, ...], depth: int, joined: Mapping[int, int] | None = None):
        self.paths = tuple(paths)
        self.depth = depth
        self.joined = dict(joined or {})
        self._check()
        # distinct paths, the layer at which each begins, and the row block that it is a copy of there (-1: of the embedding)
        self.blocks, self.starts, self.sources = self._place()
        self.readouts = tuple(self._readout(path) for path in self.paths)

    def _check(self) -> None:
        if not self.paths:
            raise ValueError("a row layout needs at least one path")
        for path in self.paths:
            if not 1 <= len(path.operations) <= self.depth:
                raise ValueError(f"a path must have 1 to {self.depth} layers, got {len(path.operations)}")
            if (GATED in path.operations) != (path.gate != NO_GATE):
                raise ValueError(f"a path that is gated somewhere has a list of open blocks, got {path}")
            for operation in path.operations:
                if operation not in OPERATIONS:
                    raise ValueError(f"unknown layer operation {operation!r}; known: {', '.join(OPERATIONS)}")

    def _place(self) -> tuple[tuple[Path, ...], tuple[int, ...], tuple[int, ...]]:
        """Distinct row blocks with the layer each starts at and the block it forks from (-1: from the embedding)."""
        distinct: list[Path] = []
        for path in sorted(self.paths, key=lambda path: -len(path.operations)):  # long first: prefixes become aliases
            if not any(path.common_prefix(other) == len(path.operations) for other in distinct):
                distinct.append(path)
        distinct.sort(key=self.paths.index)
        starts = [max([0, *(path.common_prefix(other) for other in distinct[:i])]) for i, path in enumerate(distinct)]
        order = sorted(range(len(distinct)), key=lambda i: starts[i])
        blocks = tuple(distinct[i] for i in order)
        starts = tuple(starts[i] for i in order)
        sources = []
        for i, path in enumerate(blocks):
            shared = [j for j in range(i) if starts[i] and path.common_prefix(blocks[j]) == starts[i]]
            sources.append(shared[0] if shared else -1)
        return blocks, starts, tuple(sources)

    def _readout(self, path: Path) -> Readout:
        layer = len(path.operations)
        # the first match has forked by then: one that forks later shares this prefix with its source, which stands before
        row = next(i for i, block in enumerate(self.blocks) if path.common_prefix(block) == layer)
        return Readout(row, layer, None if layer == self.depth else layer)

    @property
    def conditions(self) -> tuple[int, ...]:
        """The condition slot of every row block."""
        return tuple(block.condition for block in self.blocks)

    @cached_property
    def gated(self) -> dict[int, int]:
        """The row blocks whose gates a call may close, and by which of its lists of open blocks."""
        return {i: block.gate for i, block in enumerate(self.blocks) if block.gate != NO_GATE}

    @property
    def roots(self) -> tuple[int, ...]:
        """Row blocks that start from the embedded sample."""
        return tuple(i for i, source in enumerate(self.sources) if source < 0)

    @cached_property
    def kinds(self) -> tuple[tuple[int, tuple[str, ...], bool], ...]:
        """Of every row block: the layer at which it begins, its operations, and whether a second text is joined to it."""
        pairs = zip(self.starts, self.blocks, self.texts, strict=True)
        return tuple((start, block.operations, texts > 1) for start, block, texts in pairs)

    @cached_property
    def text_slots(self) -> tuple[tuple[int, ...], ...]:
        """The condition slots of the texts of each row block: its own, and that of a second text where one is joined to it."""
        joined = self.joined
        return tuple((slot, joined[slot]) if slot in joined else (slot,) for slot in self.conditions)

    @cached_property
    def texts(self) -> tuple[int, ...]:
        """How many texts each row block has: one, or two where a second is joined to it."""
        return tuple(map(len, self.text_slots))

    def text_rows(self, start: int, stop: int, batch: int) -> slice:
        """Where the texts of row blocks ``[start, stop)`` lie: those of each block together, sample by sample."""
        return slice(sum(self.texts[:start]) * batch, sum(self.texts[:stop]) * batch)

    @cached_property
    def layers(self) -> tuple[LayerRows, ...]:
        return tuple(self._layer(layer) for layer in range(self.depth))

    def _layer(self, layer: int) -> LayerRows:
        forks = tuple(
            Fork(source, i)
            for i, (start, source) in enumerate(zip(self.starts, self.sources, strict=True))
            if source >= 0 and start == layer
        )
        groups: list[list[Segment]] = []
        for i, (block, start) in enumerate(zip(self.blocks, self.starts, strict=True)):
            if not start <= layer < len(block.operations) or block.operations[layer] == SKIP:
                continue
            operation = FULL if block.operations[layer] == GATED else block.operations[layer]
            segment = Segment(i, i + 1, operation, block.condition in self.joined)
            if groups and groups[-1][-1].stop == i:
                groups[-1].append(segment)
            else:
                groups.append([segment])
        return LayerRows(forks, tuple(map(merged, groups)))

    @cached_property
    def block_rows(self) -> int:
        """Transformer blocks executed per sample, summed over row blocks."""
        return sum(layer.active for layer in self.layers)

    @cached_property
    def text_block_rows(self) -> int:
        """Of second texts alone, the blocks executed per sample."""
        return sum(layer.joined for layer in self.layers)

    def projections(self, early: bool) -> int:
        """Projections to latent patches per sample: one per head when branches combine early, else one per branch."""
        return len({readout.layer for readout in self.readouts}) if early else len(self.readouts)
