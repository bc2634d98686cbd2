"""Result rows: one measured value with everything needed to judge and repeat it, as JSON lines and as CSV."""

import csv
import json
import tempfile
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from .timing import Statistic


@dataclass(frozen=True)
class Environment:
    """Where and with what a run was made."""

    device: str
    threads: int
    versions: dict[str, str]
    commit: str
    command: str


@dataclass(frozen=True)
class Row:
    """One value.  ``case`` names what was set up, ``variant`` what was run, ``metric`` what was measured.

    ``expected`` is what the plan or the measured ceiling predicts, where there is such a figure; ``note`` says what was run
    where the name does not.
    """

    suite: str
    case: str
    variant: str
    metric: str
    value: float
    unit: str
    p20: float
    p80: float
    n: int
    device: str
    threads: int
    dtype: str
    versions: dict[str, str]
    commit: str
    command: str
    date: str
    expected: float | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        """What must agree for two rows to measure the same thing."""
        return (self.suite, self.case, self.variant, self.metric, self.dtype, self.device)

    @property
    def made_with(self) -> tuple:
        """What must agree besides for one of two rows to make the other superfluous."""
        return (self.device, self.threads, self.commit, tuple(sorted(self.versions.items())))

    def __str__(self) -> str:
        text = f"{self.suite} {self.case} | {self.variant} | {self.metric} {self.value:.4g} {self.unit}"
        text += f" ({self.p20:.4g} to {self.p80:.4g}, n = {self.n})"
        return text if self.expected is None else f"{text}, expected {self.expected:.4g}"


def make_row(
    environment: Environment,
    suite: str,
    case: str,
    variant: str,
    metric: str,
    unit: str,
    statistic: Statistic,
    dtype: str,
    expected: float | None = None,
    note: str = "",
) -> Row:
    """A row dated now (UTC, seconds)."""
    return Row(
        suite=suite,
        case=case,
        variant=variant,
        metric=metric,
        value=statistic.median,
        unit=unit,
        p20=statistic.p20,
        p80=statistic.p80,
        n=statistic.n,
        dtype=dtype,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        expected=expected,
        note=note,
        **asdict(environment),
    )


def parse_rows(text: str, source: str) -> list[Row]:
    """Rows of JSON lines; raises ``ValueError`` naming ``source`` and the line that is not a row."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Row(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{source}, line {number} is not a result row: {error}") from None
    return rows


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSON-lines file; raises ``ValueError`` when it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no result file {path}")
    return parse_rows(path.read_text(encoding="utf-8"), str(path))


def check_writable(path: Path) -> None:
    """Raise ``ValueError`` unless rows can be added to ``path`` and a CSV file can lie beside it."""
    path = Path(path)
    if path.suffix != ".jsonl":
        raise ValueError(f"the result file must end in .jsonl (a .csv file goes beside it), got {path}")
    if path.is_dir():
        raise ValueError(f"the result file {path} is a folder")
    table = path.with_suffix(".csv")
    if table.exists() and not path.exists():
        raise ValueError(f"{table} is there, and is no table of {path}, which is not: choose another name")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    try:  # the only question that file systems answer truly
        if path.exists():
            path.open("a").close()
        else:
            tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise ValueError(f"the result file {path} cannot be written: {error.strerror}") from None


def append_rows(path: Path, rows: list[Row]) -> None:
    """Add rows to a JSON-lines file in one write, so that an interrupted run leaves whole lines."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(asdict(row), sort_keys=True) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def write_csv(path: Path, rows: list[Row]) -> None:
    """The same rows as a CSV table; versions as one JSON cell."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row) | {"versions": json.dumps(row.versions, sort_keys=True)})


def latest(rows: list[Row]) -> list[Row]:
    """The last row of every key, in order of first appearance."""
    return list({row.key: row for row in rows}.values())
