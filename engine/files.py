"""Files that appear whole or not at all, beside what others wrote, in places that were tried before the work began."""

import errno
import filecmp
import itertools
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

Save = Callable[[Path], object]
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part")


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yields the path to write to; it takes the place of ``path`` at the end, and goes away if writing fails.

    ``durable``: after a power cut, too, ``path`` is what it was or what was written, and the latter once this has ended.
    """
    part = _unused_name(path.parent)
    try:
        yield part
        if durable:
            sync(part)
        part.replace(path)
        if durable:
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def written_first(path: Path, text: str) -> bool:
    """Write ``text`` into ``path``, whole and durable; False where a file is there already, also if another was faster."""
    part = _unused_name(path.parent)
    try:
        part.write_text(text, encoding="utf-8")
        sync(part)
        os.link(part, path)  # unlike a rename, refused where the name is taken
        sync(path.parent)
        return True
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a power cut can take nothing from a file, or no name from a folder; raises ``OSError`` where it may."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF)):  # of file systems that cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _unused_name(folder: Path) -> Path:
    """A name in ``folder`` for a file that is not finished: no other process, and no file of the user's, has it."""
    return folder / f".{secrets.token_hex(8)}.part"


def unfinished_files(folder: Path) -> list[Path]:
    """Files of ``folder`` that are being written, or were when the process that wrote them was killed."""
    return [path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name)]


class NewFiles:
    """Writes the files of one run: none takes the place of another of the run, nor of a file of other content.

    A name that is taken gets a number, ``leaf-2.png``, and the file there stays; one that holds the same bytes already is
    the file.  Refusing instead would throw the run away, for what a file will hold is not known before.  ``replace`` writes
    over the files of others.  ``numbered`` are the files that got a number.
    """

    def __init__(self, replace: bool = False):
        self.replace = replace
        self.numbered: list[Path] = []
        self._written: set[str] = set()

    def write(self, path: Path, save: Save) -> Path:
        """Write one file by ``save(path)``; returns where it is.  Raises what ``save`` does."""
        return self.write_together({path: save})[0]

    def write_together(self, saves: dict[Path, Save]) -> list[Path]:
        """Write files that belong together, which get the same number; returns where they are, in order."""
        parts = [_unused_name(path.parent) for path in saves]
        try:
            for part, (path, save) in zip(parts, saves.items(), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                save(part)
            placed = next(places for number in itertools.count(1) if (places := self._place(parts, list(saves), number)))
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        self._written |= set(map(_key, placed))
        self.numbered += [place for place, path in zip(placed, saves, strict=True) if place != path]
        return placed

    def _place(self, parts: list[Path], paths: list[Path], number: int) -> list[Path] | None:
        """Move the finished parts to ``paths`` with a number, from 2 on; None if one of these is taken."""
        places = [path if number == 1 else path.with_stem(f"{path.stem}-{number}") for path in paths]
        if any(_key(place) in self._written for place in places):
            return None
        if all(place.is_file() and filecmp.cmp(part, place, shallow=False) for part, place in zip(parts, places, strict=True)):
            return places
        if not self.replace and not _reserve(places):
            return None
        for part, place in zip(parts, places, strict=True):
            part.replace(place)
        return places


def _key(path: Path) -> str:
    """Equal for names that some file systems take for one."""
    return str(path.absolute()).casefold()


def _reserve(paths: list[Path]) -> bool:
    """Make all of these files, empty, or none: whether none of them was there is asked and answered in one step."""
    made: list[Path] = []
    try:
        for path in paths:
            path.touch(exist_ok=False)
            made.append(path)
    except FileExistsError:
        for path in made:
            path.unlink()
        return False
    return True


def locked(file: IO, wait: bool = False) -> bool:
    """Whether this process has the open ``file`` for itself, until the file is closed or the process ends in any way."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def refuse_existing(*paths: Path) -> None:
    """Raise ``FileExistsError`` if one of the files that a user named is there already."""
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} is there already; choose another name, or write over it (--force, force=True)")


def check_writable(path: Path, folder: bool) -> None:
    """Raise ``OSError`` unless ``path`` can be written, as a folder of files or as a file; leaves nothing behind.

    It is tried: missing folders are made and removed again, and an empty file is written and removed.
    """
    made: list[Path] = []
    directory = path if folder else path.parent
    try:
        for parent in reversed([directory, *directory.parents]):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        if not folder and path.is_dir():
            raise IsADirectoryError("it is a folder")
        probe = _unused_name(directory)
        probe.touch(exist_ok=False)
        probe.unlink(missing_ok=True)  # a run beside this one may sweep its folder
    except OSError as error:
        raise OSError(f"cannot write to {path}: {error.strerror or error}") from None
    finally:
        for parent in reversed(made):
            parent.rmdir()
