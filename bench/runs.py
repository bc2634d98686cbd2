"""From options to a session: the one place where suites are started."""

import shlex
import sys
from pathlib import Path

import torch

from .allocator import DEFAULT, keep_freed_memory
from .cost_model import cost_table, roofline_table
from .session import Session, Settings
from .suites import SUITES, UNFINISHED, check_read, run_suite
from .telemetry import Telemetry, environment
from .timing import timer_for


def command_line() -> str:
    """The command as the user typed it, without the path of the program: a shell takes it as it is."""
    return shlex.join(["segue", *sys.argv[1:]])


def open_session(settings: Settings, out: Path | None, resume: bool, keep_memory: bool = True) -> Session:
    """A session that measures on this machine; ``keep_memory`` applies to the whole process, so to all variants alike."""
    device = settings.torch_device
    allocator = keep_freed_memory() if keep_memory else DEFAULT
    return Session(settings, environment(device, command_line(), allocator), timer_for(device), out, resume)


def begin_session(settings: Settings, out: Path | None, resume: bool, threads: int | None, keep_memory: bool) -> Session:
    """Open a session that uses so many CPU threads, and say where it measures.  Raises ``ValueError`` for bad options."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    session = open_session(settings, out, resume, keep_memory)
    where = session.environment
    session.echo(
        f"{where.device}, {where.threads} threads, {settings.dtype_name}, commit {where.commit}, {where.versions['allocator']}"
    )
    return session


def end_session(session: Session) -> int:
    """Say what a session has come to; returns the exit code of its command.

    0 when every case has its rows, 1 when one failed or did not pass its gate, ``UNFINISHED`` when one was left out for want of
    time.
    """
    failed = f", {session.failures} failures" if session.failures else ""
    later = f", {session.unfinished} cases left for another run" if session.unfinished else ""
    session.echo(f"{len(session.rows)} rows{f' added to {session.path}' if session.path else ''}{failed}{later}")
    return UNFINISHED if session.unfinished else int(session.failures > 0)


def run_suites(
    names: tuple[str, ...], out: Path | None, resume: bool, threads: int | None, keep_memory: bool, **options
) -> int:
    """Run suites one after the other in one session; returns the exit code of the command, see :func:`end_session`.

    Of several suites each may use an equal share of the time that is left.  Raises ``ValueError`` for bad options before any
    work.
    """
    for name in names:
        if name not in SUITES:
            raise ValueError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    settings = Settings(**options)
    check_read(names, settings)
    session = begin_session(settings, out, resume, threads, keep_memory)
    reason = Telemetry(settings.torch_device).reason
    if reason:
        session.echo(reason)
    for index, name in enumerate(names):
        session.allot(1 / (len(names) - index))
        run_suite(name, session)
    return end_session(session)


def print_tables(roofline: bool, device: str | None, dtype: str | None) -> None:
    """The counted costs, and the least times on this machine where asked for."""
    print(cost_table())
    if roofline:
        settings = Settings(device=device, dtype=dtype)
        session = open_session(settings, None, resume=False)
        ceilings = session.ceilings()
        print(f"\n{session.environment.device}: copy {ceilings.copy.median / 1e12:.3g} TB/s, product", end=" ")
        print(", ".join(f"{name} {rate.median / 1e12:.3g} TFLOP/s" for name, rate in ceilings.products.items()), end="\n\n")
        print(roofline_table(ceilings, settings.torch_dtype))
