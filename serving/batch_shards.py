"""Which rows of a table are drawn together: that depends on the table alone, not on who draws nor on what is there."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .batch_requests import Group, RowRequest

NAME_DIGITS = 12


@dataclass(frozen=True)
class Shard:
    """Rows that are drawn in one batch, all of them, though only those of ``wanted`` ids are written.

    A picture may differ in its last bits between batches of other sizes: what is drawn together never changes.
    """

    requests: tuple[RowRequest, ...]
    wanted: frozenset[str]

    @property
    def name(self) -> str:
        """One for each batch of requests, and the same whenever it is drawn."""
        text = " ".join(f"{request.id}={request.digest}" for request in self.requests)
        return hashlib.sha256(text.encode()).hexdigest()[:NAME_DIGITS]


def shards_of(requests: Iterable[tuple[RowRequest, Group]], batch: int) -> list[tuple[RowRequest, ...]]:
    """Rows in their order, by groups that share their steps, cut into batches of at most ``batch``."""
    groups: dict[Group, list[RowRequest]] = {}
    for request, group in requests:
        groups.setdefault(group, []).append(request)
    return [tuple(rows[first : first + batch]) for rows in groups.values() for first in range(0, len(rows), batch)]


def unfinished(shards: Sequence[tuple[RowRequest, ...]], done: Collection[str]) -> list[Shard]:
    """The shards that lack a picture, ``done`` being the ids of rows that have theirs."""
    lacking = ((rows, frozenset(request.id for request in rows if request.id not in done)) for rows in shards)
    return [Shard(rows, wanted) for rows, wanted in lacking if wanted]
