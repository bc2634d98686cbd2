"""A progress bar over the network calls of a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .sampler import Callback, CallInfo


@contextmanager
def progress_bar(title: str, total: int, shown: bool = True, of: str = "call") -> Iterator[Callable[..., None]]:
    """Yields a function that advances a bar on stderr by one, or by its argument; there is none where that is no terminal."""
    if not shown:
        yield lambda count=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    count = TextColumn(of + " {task.completed}/{task.total}")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count=1: bar.advance(task, count)


class Counting:
    """A callback that advances a bar, and then makes the ``callback`` of the run, if any."""

    def __init__(self, callback: Callback | None, advance: Callable[[], None]):
        self.callback, self.advance = callback, advance

    def __call__(self, info: CallInfo) -> bool | None:
        self.advance()
        return None if self.callback is None else self.callback(info)
