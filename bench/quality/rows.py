"""Rows of the suite ``quality``: their keys, what a file holds of them, and how scores become rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..rows import Environment, Row, make_row, read_rows
from ..scores.accuracy import Confusion
from ..scores.intervals import Interval
from ..scores.judge import Judge, View
from ..scores.units import ACCURACY, UNITS
from ..timing import Statistic
from .interval import BY, SPREAD_LEVEL, SUITE

Key = tuple[str, ...]
REAL = "real samples"  # the variant of those that no network drew
MISTAKES = 12  # of a confusion, kept in the note of the accuracy


def metric_by(score: str, judge: str) -> str:
    """The metric of a score by a judge."""
    return f"{score}{BY}{judge}"


def split_metric(metric: str) -> tuple[str, str]:
    """The score and the judge of a metric; no judge for what nobody judges."""
    score, _, judge = metric.partition(BY)
    return score, judge


def key_of(row: Row) -> Key:
    """What must agree for two rows of quality to say the same thing: not the device, for it is the samples that count."""
    return row.key[:-1]


@dataclass(frozen=True)
class RowForm:
    """What the rows of one trial have in common; ``parents`` are the superclasses of its classes."""

    environment: Environment
    case: str
    dtype: str
    parents: tuple[int, ...] = ()
    labelled: bool = True

    def key(self, variant: str, metric: str) -> Key:
        """That of a row, as :func:`key_of`."""
        return (SUITE, self.case, variant, metric, self.dtype)

    def keys(self, variant: str, judge: Judge) -> list[Key]:
        """Those of every score by a judge."""
        return [self.key(variant, metric_by(name, judge.name)) for name in judge.metrics(self.parents, self.labelled)]

    def row(self, variant: str, metric: str, unit: str, statistic: Statistic, note: str = "") -> Row:
        return make_row(self.environment, SUITE, self.case, variant, metric, unit, statistic, self.dtype, note=note)

    def interval_row(self, variant: str, metric: str, unit: str, interval: Interval, n: int, note: str = "") -> Row:
        """The row of a value with its interval at :data:`SPREAD_LEVEL`."""
        return self.row(variant, metric, unit, Statistic(interval.value, interval.low, interval.high, n), note)

    def judged(self, variant: str, judge: Judge, view: View, labels: Tensor | None, real: Tensor) -> list[Row]:
        """A row for every score by a judge; that of the accuracy says what was taken for what."""
        confusion, rows = view.confusion(labels), []
        for name, interval in view.scores(labels, real, self.parents, SPREAD_LEVEL).items():
            note = confusion_text(confusion) if name == ACCURACY and confusion else ""
            metric = metric_by(name, judge.name)
            rows.append(self.interval_row(variant, metric, UNITS[name], interval, len(view.features), note))
        return rows


def confusion_text(confusion: Confusion) -> str:
    """The most frequent mistakes as ``asked>found:times``, as many as :data:`MISTAKES`."""
    return " ".join(f"{asked}>{found}:{times}" for asked, found, times in confusion.most_confused(MISTAKES))


def confused(row: Row) -> list[tuple[int, int, int]]:
    """The mistakes (asked, found, times) that the row of an accuracy tells of."""
    mistakes = []
    for piece in row.note.split():
        pair, _, times = piece.partition(":")
        asked, _, found = pair.partition(">")
        mistakes.append((int(asked), int(found), int(times)))
    return mistakes


def held_rows(path: Path) -> dict[Key, Row]:
    """The last row of every key in a file, if there is one, whatever device made it."""
    return {key_of(row): row for row in read_rows(path)} if path.exists() else {}


def check_names(judges: Sequence[Judge]) -> None:
    """Raise ``ValueError`` unless every judge has a name of its own."""
    names = [judge.name for judge in judges]
    if not names:
        raise ValueError("somebody must judge: name at least one judge")
    if len(set(names)) < len(names):
        raise ValueError(f"judges need names of their own, got {', '.join(names)}")


def chosen(kept: dict[Key, Row], keys: Iterable[Key]) -> list[Row]:
    """The rows of ``keys`` that are there, each once, in order."""
    return [kept[key] for key in dict.fromkeys(keys) if key in kept]
