"""Blocks of documents between markers: all of Segue beside what people run today, or the seconds of cards alone."""

import re

from .rows import Row
from .summary import beside_summary, on_card, speed_summary
from .tables import by_device, markdown_table, select

BLOCK, SECONDS = "bench", "seconds"  # the names that the markers of a block have
RULES = {"none": "unguided", "cfg": "classifier-free guidance", "sgg": "segmented guidance"}
_VARIANT = re.compile(rf"(?P<who>.+?) (?P<rule>{'|'.join(RULES)})(?P<how> as published)?")


def readme_block(rows: list[Row]) -> str:
    """Everything between the markers, cards before processors; deterministic in the rows.

    Raises ``ValueError`` as :func:`check_committed` does.
    """
    check_committed(rows)
    parts: list[str] = []
    devices = by_device(select(rows, "e2e")).items()
    for (device, dtype), here in sorted(devices, key=lambda item: not any(map(on_card, item[1]))):
        tables = (beside_summary(here), speed_summary(here))
        parts += [f"**{device}, {dtype}**, {made(here)}", *(table for table in tables if table)]
    return "\n\n".join(parts)


def seconds_block(rows: list[Row]) -> str:
    """Seconds of a batch for each case of the card that was timed last: a line per rule, a column per program.

    Raises as :func:`readme_block`.
    """
    check_committed(rows)
    timed = by_device(list(filter(on_card, select(rows, "e2e", "latency of a batch"))))
    last = sorted(timed.items(), key=lambda item: max(row.date for row in item[1]))[-1:]
    parts = []
    for (device, dtype), here in last:
        for case in dict.fromkeys(row.case.rpartition(", ")[0] for row in here):
            lines: dict[str, dict[str, str]] = {}
            for row in here:
                if (match := _VARIANT.fullmatch(row.variant)) and row.case.startswith(f"{case}, "):
                    lines.setdefault(match["rule"], {})[match["who"]] = f"{row.value:.3g} s{match['how'] or ''}"
            programs = list(dict.fromkeys(who for line in lines.values() for who in line))
            cells = [[RULES[rule], *(line.get(who, "-") for who in programs)] for rule, line in lines.items()]
            parts.append(markdown_table((f"{case}; {device}, {dtype}", *programs), cells))
    return "\n\n".join(parts)


def check_committed(rows: list[Row]) -> None:
    """Raise ``ValueError`` for rows of code that was never committed: nobody could measure them again."""
    for row in rows:
        if row.commit.endswith("+changes"):
            raise ValueError(f"{row.suite} {row.case} was measured with uncommitted changes ({row.commit}); measure it again")


def made(rows: list[Row]) -> str:
    """When and from which commits, with the release of PyTorch; the report has the other versions."""
    releases = ", ".join(sorted({row.versions.get("torch", "unknown") for row in rows}))
    commits, dates = dict.fromkeys(row.commit for row in rows), sorted({row.date[:10] for row in rows})
    return f"torch {releases}, commit {', '.join(commits)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}:"


def update_document(text: str, rows: list[Row], name: str) -> str:
    """``text`` with its blocks made of ``rows``; raises ``ValueError`` for markers without their pair, and for none."""
    makers = {BLOCK: readme_block, SECONDS: seconds_block}
    found = [block for block in makers if markers(block)[0] in text]
    for block in found or [BLOCK]:
        text = update_block(text, makers[block](rows), name, block)
    return text


def markers(block: str) -> tuple[str, str]:
    """What begins and ends a generated block of a document."""
    return f"<!-- {block}:begin -->", f"<!-- {block}:end -->"


def update_block(text: str, content: str, name: str, block: str = BLOCK) -> str:
    """``text`` with ``content`` between the markers of ``block``; raises ``ValueError`` unless there is one pair."""
    begin, end = markers(block)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{name} needs one pair of markers, {begin} and {end}")
    return text[: text.index(begin)] + "\n\n".join([begin, content, end]) + text[text.index(end) + len(end) :]
