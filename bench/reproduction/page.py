"""The pages of reproduction: blocks of a document that are made of rows, what is missing, and how long it took."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.engine.files import check_writable, whole_file

from ..readme_block import check_committed, markers, update_block
from ..rows import Environment, Row
from ..tables import markdown_table, provenance
from .claims import Claim, claim_table, tally
from .durations import SUITE, total_duration

LEAST = 960  # samples of a rule, for a table to hold it
INDEX = "README.md"


@dataclass(frozen=True)
class Missing:
    """What a table does not hold, how many samples of it there are, and the command that draws it."""

    what: str
    samples: int
    command: str


@dataclass(frozen=True)
class Content:
    """What a page says: tables and sentences in order, the claims, what is missing, and the rows that all of it is made of.

    Its tables hold nothing of fewer than ``least`` samples.
    """

    parts: Sequence[str]
    claims: Sequence[Claim] = ()
    missing: Sequence[Missing] = ()
    rows: Sequence[Row] = ()
    least: int = LEAST

    def text(self) -> str:
        """All of it, for a block of a page."""
        parts = [part for part in self.parts if part] or ["Nothing is measured yet."]
        parts += [table for table in (claim_table(self.claims), missing_table(self.missing, self.least)) if table]
        return "\n\n".join([*parts, *([footing(self.rows)] if self.rows else [])])


def missing_table(missing: Sequence[Missing], least: int) -> str:
    """What a table does not hold, for want of samples, and how to draw it."""
    lines = [[each.what, str(each.samples), f"`{each.command}`"] for each in missing]
    return markdown_table((f"missing (fewer than {least} samples)", "samples", "command"), lines)


def footing(rows: Sequence[Row]) -> str:
    """Where, by what and for how long rows were made."""
    measured = [row for row in rows if row.suite != SUITE]
    devices = " and ".join(dict.fromkeys(row.device for row in measured))
    commands = " ".join(f"`{each}`" for each in dict.fromkeys(row.command for row in measured))
    took = total_duration(rows)
    return ". ".join(filter(None, [devices, commands, took, provenance(measured)]))


def check_folder(folder: Path | None, environment: Environment) -> None:
    """Raise ``ValueError`` or ``OSError``, before any work, where pages could not be written into ``folder``.

    Rows of code that was never committed go into no document: nobody could measure them again.
    """
    if folder is None:
        return
    if folder.is_file():
        raise ValueError(f"the pages are written into a folder, got the file {folder}")
    if environment.commit.endswith("+changes"):
        raise ValueError(
            f"rows of uncommitted changes ({environment.commit}) go into no document: commit them, or leave out --into {folder}"
        )
    check_writable(folder, folder=True)


def write_page(folder: Path, name: str, title: str, content: Content) -> list[Path]:
    """Put the content between the markers of ``folder/NAME.md``, and its verdicts into the index; returns the files.

    A page that is not there is begun.  Raises ``ValueError`` as :func:`check_committed`, and for a page without its markers,
    before anything is written.
    """
    check_committed(list(content.rows))
    page, index = folder / f"{name}.md", folder / INDEX
    begun = f"# {title}\n\n{empty_block(name)}\n"
    texts = {page: update_block(_read(page, begun), content.text(), str(page), name)}
    if index.exists() and markers(name)[0] in (listed := _read(index, "")):
        texts[index] = update_block(listed, verdict_text(content.claims), str(index), name)
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    return list(texts)


def empty_block(name: str) -> str:
    """The markers of a page with nothing between them."""
    begin, end = markers(name)
    return "\n\n".join([begin, "Nothing is measured yet.", end])


def verdict_text(claims: Sequence[Claim]) -> str:
    """For the index: how many claims agree, and each with its verdict."""
    lines = [f"- {claim.verdict}: {claim.where}: {claim.says} ({claim.measured})" for claim in claims]
    return "\n".join([f"Computed: {tally(claims)}.", *(["", *lines] if lines else [])])


def _read(path: Path, missing: str) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else missing
