"""The folder of a table's pictures: one whole file a row whoever is killed, a manifest, failures, and what it was begun with.

::

    batch.json            the networks, the precision and the batch that every picture is drawn with
    pictures/ID.png       a row's picture, with the record that it can be drawn again from
    manifest.jsonl        a line for each picture, in the order of the table
    failures.jsonl        a line for each row without a picture, with the reason
    shards/               while it is drawn: which rows of each shard are there, and how often a shard was begun
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from segue.engine.files import check_writable, locked, whole_file
from segue.engine.images import save_png
from segue.engine.records.begun import begin_or_go_on
from segue.engine.records.provenance import Record, parameters_text

from .batch_requests import Failure, RowRequest
from .batch_shards import Shard
from .batch_table import Row

PICTURES, SHARDS = "pictures", "shards"
LOCK, BEGUN, MANIFEST, FAILURES = "batch.lock", "batch.json", "manifest.jsonl", "failures.jsonl"


@dataclass(frozen=True)
class Drawn:
    """A picture that is there: of which request, and which bytes."""

    id: str
    digest: str
    file: str
    bytes: int
    sha256: str


class BatchFolder:
    """Where pictures are written, by any number of processes that see the folder; :meth:`begin` is for the one that leads.

    A picture is written whole and then renamed to the name that its row's id gives; after all of a shard, one file says so.  A
    process that is killed between leaves pictures that the next draws again, bit for bit, in their place.
    """

    def __init__(self, out: Path):
        self.out = Path(out)
        self.pictures, self.shards = self.out / PICTURES, self.out / SHARDS

    # --- the process that leads ------------------------------------------------------------------------------------------

    def begin(self) -> Any:
        """Make the folder, or go on with it; returns the lock, to be closed at the end.

        Raises ``ValueError`` for a folder of something else, and where another command is drawing into it.
        """
        check_writable(self.out, folder=True)
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / LOCK).exists():
            raise ValueError(f"{self.out} holds something else already: it was not begun by segue batch")
        for folder in (self.pictures, self.shards):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (self.out / LOCK).open("ab")
        if not locked(lock):
            lock.close()
            raise ValueError(f"another process is drawing into {self.out}")
        self._sweep()
        for attempt in self.shards.glob("*.try-*"):
            attempt.unlink(missing_ok=True)
        return lock

    def _sweep(self) -> None:
        """Remove what processes that were killed left of files that they were writing."""
        for folder in (self.pictures, self.shards):
            for part in folder.glob(".*.part"):
                part.unlink(missing_ok=True)

    def drawn(self) -> dict[str, Drawn]:
        """The pictures that are there, by id: named by the manifest or by a shard, and as long as they were written."""
        return self._named(self.out / MANIFEST, *self._shard_files())

    def forget(self, ids: Iterable[str]) -> None:
        """Remove the pictures of rows, and what says that they are there."""
        gone = set(ids)
        for file in (self.out / MANIFEST, *self._shard_files()):
            lines = _lines(file)
            if any(line["id"] in gone for line in lines):
                _write_lines(file, (line for line in lines if line["id"] not in gone))
        for id in gone:
            self._picture(id).unlink(missing_ok=True)

    def finish(self, rows: Sequence[Row], requests: Mapping[str, RowRequest], failures: Iterable[Failure]) -> None:
        """Write the manifest and the failures, in the order of the table, and remove what served until here."""
        drawn, reasons = self.drawn(), {failure.id: failure.reason for failure in failures}
        there = [(row, drawn[row.id]) for row in rows if row.id in drawn and row.id in requests]
        lines = ({"row": row.number} | asdict(made) | requests[row.id].told() | _others(row) for row, made in there)
        _write_lines(self.out / MANIFEST, lines)
        failed = ({"row": row.number, "id": row.id, "reason": reasons[row.id]} for row in rows if row.id in reasons)
        _write_lines(self.out / FAILURES, failed)
        self._sweep()
        for file in self.shards.iterdir():
            file.unlink(missing_ok=True)

    # --- every process that draws ----------------------------------------------------------------------------------------

    def claim(self, made_by: dict) -> None:
        """Begin the folder with these networks and this batch; ``ValueError`` where it was begun with others."""
        begin_or_go_on(self.out / BEGUN, made_by, self.out)

    def has(self, shard: Shard) -> bool:
        """Whether a shard is finished: a process that was given up for dead ended it after all."""
        return shard.wanted <= self._named(self._file_of(shard)).keys()

    def count_attempt(self, shard: Shard) -> int:
        """How often a shard has been begun since the command began, this time included."""
        number = 1
        while True:
            with suppress(FileExistsError):
                self.shards.joinpath(f"{shard.name}.try-{number}").touch(exist_ok=False)
                return number
            number += 1

    def write(self, request: RowRequest, image: Image.Image, record: Record, names: tuple[str, ...]) -> Drawn:
        """Write one picture, whole; what is there already under its name is of the same row, and gives way."""
        file, chunk = self._picture(request.id), record.to_dict() | {"row": {"id": request.id, "digest": request.digest}}
        with whole_file(file) as part:
            save_png(image, part, parameters_text(record, names), chunk)
            data = part.read_bytes()
        name = file.relative_to(self.out).as_posix()
        return Drawn(request.id, request.digest, name, len(data), hashlib.sha256(data).hexdigest())

    def write_shard(self, shard: Shard, drawn: Iterable[Drawn]) -> None:
        """Say which pictures of a shard are there, once they are; those that it had already still are."""
        file = self._file_of(shard)
        found = self._named(file) | {made.id: made for made in drawn}
        _write_lines(file, map(asdict, found.values()))

    def _named(self, *files: Path) -> dict[str, Drawn]:
        """The pictures that files of lines name and that are there, by id."""
        found: dict[str, Drawn] = {}
        for file in files:
            try:
                found |= {line["id"]: Drawn(*(line[field.name] for field in fields(Drawn))) for line in _lines(file)}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{file} is not as it was written: {error}; remove it, and its pictures are drawn again"
                ) from None
        return {id: made for id, made in found.items() if _length(self.out / made.file) == made.bytes}

    def _file_of(self, shard: Shard) -> Path:
        return self.shards / f"{shard.name}.jsonl"

    def _shard_files(self) -> list[Path]:
        return sorted(self.shards.glob("*.jsonl"))

    def _picture(self, id: str) -> Path:
        return self.pictures / f"{id}.png"


def _others(row: Row) -> dict[str, Any]:
    return {"columns": dict(row.others)} if row.others else {}


def _lines(file: Path) -> list[dict]:
    """The objects of a file of JSON lines; none where there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _write_lines(file: Path, lines: Iterable[dict]) -> None:
    with whole_file(file) as part, part.open("w", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(line, default=str)}\n" for line in lines)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
