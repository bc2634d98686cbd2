"""A progress bar over the network calls of a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .sampler import Callback, CallInfo


@contextmanager
def progress_bar(title: str, total: int, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Yields a function that advances a bar on stderr by one; there is no bar where stderr is not a terminal."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    count = TextColumn("call {task.completed}/{task.total}")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def counting(callback: Callback | None, advance: Callable[[], None]) -> Callback:
    """``callback``, if any, with the bar advanced before it."""

    def advance_then_call(info: CallInfo) -> bool | None:
        advance()
        return None if callback is None else callback(info)

    return advance_then_call
