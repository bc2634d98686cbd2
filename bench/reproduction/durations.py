"""How long reproduction took: a row of the suite ``duration`` for every command that measured something."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..quality.rows import held_rows
from ..rows import Environment, Row, append_rows, make_row, read_rows
from ..timing import Statistic

SUITE = "duration"


@contextmanager
def timed(path: Path, environment: Environment, command: str, now: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Add the seconds of what is done inside to ``path``, if rows came to it, however it ended."""
    before, began = _count(path), now()
    try:
        yield
    finally:
        if (new := _count(path) - before) > 0:
            seconds = now() - began
            statistic = Statistic(seconds, seconds, seconds, new)
            append_rows(path, [make_row(environment, SUITE, command, "run", "seconds", "s", statistic, "none")])


def total_duration(rows: Sequence[Row]) -> str:
    """How long the runs took whose durations are among ``rows``; nothing where there are none."""
    seconds = [row.value for row in rows if row.suite == SUITE]
    if not seconds:
        return ""
    many = f" in {len(seconds)} runs" if len(seconds) > 1 else ""
    return f"{sum(seconds) / 60:.1f} minutes{many}"


def durations_of(path: Path, command: str) -> list[Row]:
    """The rows of all runs of a command in a file."""
    return [row for row in read_rows(path) if (row.suite, row.case) == (SUITE, command)] if path.exists() else []


def rows_and_durations(path: Path, command: str) -> list[Row]:
    """The last row of every key in a file, and of durations all those of one command."""
    return [row for row in held_rows(path).values() if row.suite != SUITE] + durations_of(path, command)


def _count(path: Path) -> int:
    return len(read_rows(path)) if path.exists() else 0
