"""The folder of a table's pictures: one whole file a row whoever is killed, a manifest, failures, and what it was begun with.

::

    batch.json            the networks, the precision and the batch that every picture is drawn with
    pictures/ID.png       a row's picture, with the record that it can be drawn again from
    manifest.jsonl        a line for each picture, in the order of the table
    failures.jsonl        a line for each row without a picture, with the reason
    batch.lock            whoever has it locked is drawing
    shards/               while it is drawn: which rows of each shard are there, and how often a shard was begun
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from segue.engine.files import locked, sync, unfinished_files, whole_file
from segue.engine.images import RECORD_CHUNK, save_png
from segue.engine.records.begun import begin_or_go_on, begun_with
from segue.engine.records.provenance import Record, parameters_text

from .batch_requests import Failure, RowRequest
from .batch_shards import Shard
from .batch_table import Row

PICTURES, SHARDS = "pictures", "shards"
LOCK, BEGUN, MANIFEST, FAILURES = "batch.lock", "batch.json", "manifest.jsonl", "failures.jsonl"
DRAWN_BY, OPENED_FOR = "try", "opening"  # what processes begin for a shard, and may die of
PNG = ".png"


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

    A picture is written whole and then renamed to the name that its row's id gives; after all of a shard, once they are on the
    disk, one file says so.  A process that is killed between leaves pictures that the next draws again, bit for bit, in their
    place, or removes where their rows are drawn no more.
    """

    def __init__(self, out: Path):
        self.out = Path(out)
        self.pictures, self.shards = self.out / PICTURES, self.out / SHARDS

    # --- the process that leads ------------------------------------------------------------------------------------------

    def begin(self) -> Any:
        """Make the folder, or go on with it; returns the lock, to be closed at the end.

        Raises ``ValueError`` for a folder of something else, and where another command is drawing into it; ``OSError`` where
        nothing can be written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if self._is_of_others():
                raise ValueError(f"{self.out} holds something else already: it was not begun by segue batch")
            lock = (self.out / LOCK).open("ab")  # before all else: it says whose folder this is
        except OSError as error:
            raise OSError(f"cannot write to {self.out}: {error.strerror or error}") from None
        if not locked(lock):
            lock.close()
            raise ValueError(f"another process is drawing into {self.out}")
        for folder in (self.pictures, self.shards):
            folder.mkdir(exist_ok=True)
        sync(self.out)
        self._sweep()
        for begun in (DRAWN_BY, OPENED_FOR):
            for attempt in self.shards.glob(f"*.{begun}-*"):
                attempt.unlink(missing_ok=True)
        return lock

    def _is_of_others(self) -> bool:
        """Whether there is anything but what a start that was killed leaves, and no lock."""
        started = {folder for folder in (self.pictures, self.shards) if folder.is_dir() and not any(folder.iterdir())}
        found = set(self.out.iterdir()) - started - set(unfinished_files(self.out))
        return bool(found) and not (self.out / LOCK).exists()  # in this order: who begins beside this makes the lock first

    def _sweep(self) -> None:
        """Remove what processes that were killed left of files that they were writing."""
        for folder in (self.out, self.pictures, self.shards):
            for part in unfinished_files(folder):
                part.unlink(missing_ok=True)

    def drawn(self) -> dict[str, Drawn]:
        """The pictures that are there, by id: named by the manifest or by a shard, and as long as they were written."""
        return self._named(self.out / MANIFEST, *self._shard_files())

    def forget(self, ids: Iterable[str]) -> None:
        """Remove the pictures of rows, and then what says that they are there: it is not believed without them."""
        gone = set(ids)
        for id in gone:
            self._picture(id).unlink(missing_ok=True)
        for file in (self.out / MANIFEST, *self._shard_files()):
            lines = _lines(file)
            if any(line["id"] in gone for line in lines):
                _write_lines(file, (line for line in lines if line["id"] not in gone))

    def finish(self, rows: Sequence[Row], requests: Mapping[str, RowRequest], failures: Iterable[Failure]) -> None:
        """Write the manifest and the failures, in the order of the table, and remove what served until here.

        Pictures that the manifest does not name go too: of rows that failed or are gone, by processes that were killed.
        """
        drawn, reasons = self.drawn(), {failure.id: failure.reason for failure in failures}
        there = [(row, drawn[row.id]) for row in rows if row.id in drawn and row.id in requests]
        lines = ({"row": row.number} | asdict(made) | requests[row.id].told() | _others(row) for row, made in there)
        _write_lines(self.out / MANIFEST, lines)
        failed = ({"row": row.number, "id": row.id, "reason": reasons[row.id]} for row in rows if row.id in reasons)
        _write_lines(self.out / FAILURES, failed)
        self._remove_pictures({row.id for row in rows}, {row.id for row, _ in there})
        self._sweep()
        for file in self.shards.iterdir():
            file.unlink(missing_ok=True)

    def _remove_pictures(self, ids: Collection[str], kept: Collection[str]) -> None:
        """Remove pictures but those of ``kept`` rows: under the names of ``ids``, or by their own records of rows of old."""
        for path in self.pictures.glob(f"*{PNG}"):
            if path.stem not in kept and path.is_file() and (path.stem in ids or _row_of(path) == path.stem):
                path.unlink(missing_ok=True)

    def begun(self) -> dict | None:
        """What the folder was begun with and what was asked for then, None before; ``ValueError`` where that is lost."""
        file = self.out / BEGUN
        return begun_with(file, self.out) if file.exists() else None

    # --- every process that draws ----------------------------------------------------------------------------------------

    def claim(self, made_by: dict, asked: Mapping[str, Any]) -> None:
        """Begin the folder with these networks and this batch; ``ValueError`` where it was begun with others."""
        begin_or_go_on(self.out / BEGUN, made_by, self.out, asked)

    def has(self, shard: Shard) -> bool:
        """Whether a shard is finished: a process that was given up for dead ended it after all."""
        return shard.wanted <= self._named(self._file_of(shard)).keys()

    def count_attempt(self, shard: Shard, begun: str = DRAWN_BY) -> int:
        """How often this has been begun for a shard since the command began, or since it succeeded, this time included."""
        number = 1
        while True:
            with suppress(FileExistsError):
                self.shards.joinpath(f"{shard.name}.{begun}-{number}").touch(exist_ok=False)
                return number
            number += 1

    def forget_attempts(self, shard: Shard, begun: str) -> None:
        """Begin to count anew: it succeeded."""
        for attempt in self.shards.glob(f"{shard.name}.{begun}-*"):
            attempt.unlink(missing_ok=True)

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
        file, new = self._file_of(shard), {made.id: made for made in drawn}
        for made in new.values():  # not each as it is written: together they cost the disk a fraction of that
            sync(self.out / made.file)
        sync(self.pictures)
        _write_lines(file, map(asdict, (self._named(file) | new).values()))

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
        return self.pictures / f"{id}{PNG}"


def _row_of(path: Path) -> str | None:
    """The id of the row that a picture says it is of; None for whatever else a file may be."""
    try:
        with Image.open(path) as image:
            return json.loads(image.info[RECORD_CHUNK])["row"]["id"]
    except Exception:  # of a file of the user's, which may be anything
        return None


def _others(row: Row) -> dict[str, Any]:
    return {"columns": dict(row.others)} if row.others else {}


def _lines(file: Path) -> list[dict]:
    """The objects of a file of JSON lines; none where there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _write_lines(file: Path, lines: Iterable[dict]) -> None:
    with whole_file(file, durable=True) as part, part.open("w", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(line, default=str)}\n" for line in lines)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
