"""Blocks of documents between markers: all of Segue beside what people run today, or the seconds of cards alone."""

import re

from .rows import Row
from .summary import beside_summary, on_card, speed_summary
from .tables import by_device, markdown_table, select

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
SECONDS_BEGIN, SECONDS_END = "<!-- seconds:begin -->", "<!-- seconds:end -->"
RULES = {"none": "unguided", "cfg": "classifier-free guidance", "sgg": "segmented guidance"}
_VARIANT = re.compile(rf"(?P<who>.+?) (?P<rule>{'|'.join(RULES)})(?P<how> as published)?")


def readme_block(rows: list[Row]) -> str:
    """Markers and everything between them, cards before processors; deterministic in the rows.

    Raises ``ValueError`` for rows of code that was never committed: nobody could measure them again.
    """
    _check_committed(rows)
    parts = [BEGIN]
    devices = by_device(select(rows, "e2e")).items()
    for (device, dtype), here in sorted(devices, key=lambda item: not any(map(on_card, item[1]))):
        tables = (beside_summary(here), speed_summary(here))
        parts += [f"**{device}, {dtype}**, {made(here)}", *(table for table in tables if table)]
    return "\n\n".join([*parts, END])


def seconds_block(rows: list[Row]) -> str:
    """Markers and, for each case that a card was timed on, the seconds of a batch: a line per rule, a column per program.

    Raises as :func:`readme_block`.
    """
    _check_committed(rows)
    timed = filter(on_card, select(rows, "e2e", "latency of a batch"))
    parts = [SECONDS_BEGIN]
    for (device, dtype), here in by_device(list(timed)).items():
        for case in dict.fromkeys(row.case.rpartition(", ")[0] for row in here):
            lines: dict[str, dict[str, str]] = {}
            for row in here:
                if (match := _VARIANT.fullmatch(row.variant)) and row.case.startswith(f"{case}, "):
                    lines.setdefault(match["rule"], {})[match["who"]] = f"{row.value:.3g} s{match['how'] or ''}"
            programs = list(dict.fromkeys(who for line in lines.values() for who in line))
            cells = [[RULES[rule], *(line.get(who, "-") for who in programs)] for rule, line in lines.items()]
            parts.append(markdown_table((f"{case}; {device}, {dtype}", *programs), cells))
    return "\n\n".join([*parts, SECONDS_END])


def _check_committed(rows: list[Row]) -> None:
    for row in rows:
        if row.commit.endswith("+changes"):
            raise ValueError(f"{row.suite} {row.case} was measured with uncommitted changes ({row.commit}); measure it again")


def made(rows: list[Row]) -> str:
    """When and from which commits, with the release of PyTorch; the report has the other versions."""
    releases = ", ".join(sorted({row.versions.get("torch", "unknown") for row in rows}))
    commits, dates = dict.fromkeys(row.commit for row in rows), sorted({row.date[:10] for row in rows})
    return f"torch {releases}, commit {', '.join(commits)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}:"


def update_document(text: str, rows: list[Row], name: str) -> str:
    """``text`` with the blocks of its markers made of ``rows``; raises ``ValueError`` for unpaired markers or none."""
    wanted = [make for make, begin in ((readme_block, BEGIN), (seconds_block, SECONDS_BEGIN)) if begin in text]
    for make in wanted or [readme_block]:
        text = update_block(text, make(rows), name)
    return text


def update_block(text: str, block: str, name: str) -> str:
    """``text`` with what lies between the markers of ``block`` replaced; raises ``ValueError`` unless there is one pair."""
    begin, end = block.split("\n", 1)[0], block.rsplit("\n", 1)[-1]
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{name} needs one pair of markers, {begin} and {end}")
    return text[: text.index(begin)] + block + text[text.index(end) + len(end) :]
