"""``segue score --report``: the tables of rows that are there, printed or between the markers of a document."""

from collections.abc import Sequence
from pathlib import Path

from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine
from segue.engine.files import whole_file
from segue.engine.rules.presets import parse_rule

from ..readme_block import check_committed, update_block
from ..rows import Row, read_rows
from .rows import REAL
from .tables import quality_tables
from .trial import networks_of, parse_case

BLOCK = "quality"  # the markers of a document that the tables stand between


def write_report(
    out: Path,
    source: Source | None,
    samples: int | None,
    seed: int | None,
    into: Path | None,
    rules: Sequence[str] | None = None,
) -> None:
    """The tables of the rows that a file holds: of one model, of so many samples, from one seed, where these are given.

    ``rules``: of those alone, by the numbers of the model, and of real samples.  Raises ``ValueError`` where there are none,
    and for rows of uncommitted code that would go into a document.
    """
    if not out.is_file():
        raise FileNotFoundError(f"there is no result file {out}: segue score makes it, or name another by --out")
    engine = None if source is None else open_engine(source)
    rows = chosen_rows(read_rows(out), None if engine is None else networks_of(engine), samples, seed)
    if rules is not None and engine is not None:
        texts = {parse_rule(rule, engine.spec).text for rule in rules}
        rows = [row for row in rows if row.variant in {*texts, REAL}]
        if lacking := texts - {row.variant for row in rows}:
            raise ValueError(f"{out} holds no rows of {', '.join(sorted(lacking))}")
    text = quality_tables(rows)
    if not text:
        wanted = {"of the weights of": source and source.name, "of samples:": samples, "from seed": seed}
        told = "".join(f" {what} {value}" for what, value in wanted.items() if value is not None)
        raise ValueError(f"{out} holds no rows of quality{told}")
    if into is None:
        print(text)
        return
    check_committed(rows)
    updated = update_block(into.read_text(encoding="utf-8"), text, str(into), BLOCK)
    with whole_file(into) as part:
        part.write_text(updated, encoding="utf-8")
    print(f"wrote {into}")


def chosen_rows(rows: Sequence[Row], networks: str | None, samples: int | None, seed: int | None) -> list[Row]:
    """The rows of one engine's networks (:func:`.trial.networks_of`) and of one way to draw, None being any."""
    found = []
    for row in rows:
        case = parse_case(row.case)
        if case is None:
            wanted = networks is None and samples is None and seed is None
        else:
            asked = ((networks, case.networks), (samples, case.trial.samples), (seed, case.trial.first_seed))
            wanted = all(want in (None, have) for want, have in asked)
        if wanted:
            found.append(row)
    return found
