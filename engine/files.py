"""Files that appear whole or not at all, in places that were tried before the work began."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields the path to write to; it takes the place of ``path`` at the end, and goes away if writing fails."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
        probe = directory / f".{path.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to {path}: {error.strerror or error}") from None
    finally:
        for parent in reversed(made):
            parent.rmdir()
