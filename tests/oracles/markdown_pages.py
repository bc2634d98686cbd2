"""The documents of this repository taken apart: their code blocks, links, headings and the marks that say what is not run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*)$")
MARK = re.compile(r"<!-- (not run|slow|raises)(?:: (.+?))? -->")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its fence, and the mark in the comment right above it.

    Marks: ``not run: REASON``, ``slow`` (`make test-all` alone runs it), ``raises: WORDS`` (it is refused with these words).
    """

    language: str
    text: str
    line: int
    mark: str = ""
    words: str = ""


def documents() -> list[Path]:
    """Every page that a person wrote or that is made for people."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]
    return sorted([*pages, *(ROOT / "models" / "bundled").glob("*.md"), *(ROOT / "bench" / "results").glob("*.md")])


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of ``page``; ``ValueError`` for one that is not closed."""
    lines = page.read_text(encoding="utf-8").splitlines()
    opened, last = None, ""
    for number, line in enumerate(lines, 1):
        fence = FENCE.match(line)
        if opened is None and fence:
            opened = number, fence, MARK.fullmatch(last.strip())
        elif opened is not None and fence and not fence[2]:
            start, fence, mark = opened
            text = "\n".join(line[len(fence[1]) :] for line in lines[start : number - 1])
            yield Block(fence[2], text, start, *((mark[1], mark[2] or "") if mark else ()))
            opened = None
        last = line if line.strip() else last
    if opened is not None:
        raise ValueError(f"{page.name}: the block of line {opened[0]} is not closed")


def prose(page: Path) -> str:
    """The text of ``page`` without its blocks."""
    text, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = FENCE.match(line)
        text.append("" if inside or fence else line)
        inside ^= bool(fence)
    return "\n".join(text)


def spans(page: Path) -> list[str]:
    """The code spans in the sentences of ``page``, each on one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of ``page``."""
    return re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of ``page`` as GitHub and the site make them; of equal headings the first has it."""
    headings, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= bool(FENCE.match(line))
        if not inside and (heading := re.match(r"#+ (.+)", line)):
            headings.append(heading[1].lower())
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in headings}
