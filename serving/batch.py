"""A table of pictures, drawn by this process or by others: what is there is left out, and what fails stops nothing else."""

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from segue.engine.running.progress import progress_bar

from .batch_drawing import Drawing, Outcome
from .batch_folder import FAILURES, BatchFolder, Drawn
from .batch_requests import Failure, RowRequest, Settled
from .batch_shards import Shard, shards_of, unfinished

DrawAll = Callable[[Drawing, Sequence[Shard]], Generator[Outcome]]


@dataclass(frozen=True)
class Report:
    """What came of a table; ``skipped`` pictures were there before, ``retried`` counts shards begun again after a death."""

    out: str
    rows: int
    drawn: int
    skipped: int
    failed: int
    retried: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Pictures a second, of those that were drawn now."""
        return self.drawn / self.seconds if self.seconds else 0.0

    def told(self) -> dict:
        """Numbers for machines."""
        return asdict(self) | {"seconds": round(self.seconds, 3), "images_per_second": round(self.per_second, 3)}

    def __str__(self) -> str:
        text = (
            f"{self.drawn} of {self.rows} rows drawn into {self.out} in {self.seconds:.1f} s ({self.per_second:.2f} a second)"
        )
        text += f", {self.skipped} were there" if self.skipped else ""
        return f"{text}; {self.failed} failed: {Path(self.out) / FAILURES} says why" if self.failed else text


def draw_here(drawing: Drawing, shards: Sequence[Shard]) -> Generator[Outcome]:
    """Draw every shard in this process, with one engine, which is opened at once: what refuses, does so before any work."""
    drawer = drawing.open()
    return (drawer(shard) for shard in shards)


def draw_table(table: Settled, drawing: Drawing, draw_all: DrawAll = draw_here, force: bool = False) -> Report:
    """Draw what a table lacks, by ``draw_all``; an interruption leaves everything to go on with.

    Raises ``ValueError`` before any work where the folder holds pictures of rows that have changed or are gone, unless
    ``force`` lets them go, and where it was begun with other networks.
    """
    folder, wanted, tally, began = BatchFolder(drawing.out), table.wanted, _Tally(table.failures), time.perf_counter()
    with folder.begin():
        there = folder.drawn()
        stale = _changed(folder, there, table, wanted, force)
        done = there.keys() - set(stale)
        todo = unfinished(shards_of(table.requests, drawing.batch), done)
        if stale or (done and not todo):
            drawing.check()  # other networks are refused before anything goes, and where nothing is left to draw
        outcomes = draw_all(drawing, todo) if todo else None
        folder.forget(stale)
        try:
            if outcomes is not None:
                count = sum(len(shard.wanted) for shard in todo)
                with progress_bar(table.model, count, of="row") as advance, closing(outcomes):
                    for outcome in outcomes:
                        tally.add(outcome)
                        advance(outcome.drawn + len(outcome.failures))
        finally:
            folder.finish(table.rows, wanted, tally.failures)
    seconds = time.perf_counter() - began
    counts = len(table.rows), tally.drawn, len(done), len(tally.failures), tally.retried
    return Report(str(drawing.out), *counts, seconds)


class _Tally:
    """The sum of outcomes so far."""

    def __init__(self, failures: Iterable[Failure]):
        self.drawn = self.retried = 0
        self.failures = list(failures)

    def add(self, outcome: Outcome) -> None:
        self.drawn += outcome.drawn
        self.retried += outcome.retried
        self.failures += outcome.failures


def _changed(
    folder: BatchFolder, there: Mapping[str, Drawn], table: Settled, wanted: Mapping[str, RowRequest], force: bool
) -> list[str]:
    """Those ids of pictures that are ``there`` whose rows say something else by now; ``ValueError`` unless ``force``."""
    known = {row.id for row in table.rows}
    stale = [id for id, made in there.items() if id not in wanted or wanted[id].digest != made.digest]
    if stale and not force:
        what = "says something else than when its picture was drawn" if stale[0] in known else "is not in the table any more"
        more = f" (and {len(stale) - 1} more have changed)" if len(stale) > 1 else ""
        way = f"take another folder than {folder.out}, or let --force remove such pictures"
        raise ValueError(f"row {stale[0]!r} {what}{more}; {way}")
    return stale
