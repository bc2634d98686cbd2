"""From the options of ``segue bench serve`` to its rows, tables and verdict."""

from pathlib import Path

from ..cases import BUNDLED, BenchModel
from ..rows import latest
from ..runs import begin_session, end_session
from ..session import Session, Settings
from ..workloads import applicable
from .arrivals import SHARES, Mix
from .drawings import Drawings
from .load_bench import LoadBench
from .overhead import MODEL, measure_overhead
from .settings import LoadSettings
from .tables import load_tables


def run_load(
    model: str | None,
    load: LoadSettings | None,
    out: Path | None,
    resume: bool,
    threads: int | None,
    keep_memory: bool,
    **options,
) -> int:
    """Measure a model under ``load``, or without one the time outside its networks; returns the exit code of the command.

    Raises ``ValueError`` for bad options before any work.
    """
    chosen = BenchModel.parse(model or (MODEL if load is None else BUNDLED))
    session = begin_session(Settings(models=(chosen.text,), **options), out, resume, threads, keep_memory)
    measure(session, chosen, load)
    if tables := load_tables(latest([*session.held, *session.rows])):
        session.echo(f"\n{tables}\n")
    return end_session(session)


def measure(session: Session, model: BenchModel, load: LoadSettings | None) -> None:
    """Add the rows of a model that the session's file lacks."""
    rules = tuple(rule for rule in SHARES if applicable(session, model, rule))
    drawings = Drawings.load(session, model)
    if load is None:
        measure_overhead(session, drawings, rules)
    else:
        LoadBench(session, drawings, Mix.of(rules), load).run()
