"""The block of the README between its markers: Segue beside what people run today, and seconds where they are a card's."""

from .rows import Row
from .summary import beside_summary, on_card, speed_summary
from .tables import by_device, select

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def readme_block(rows: list[Row]) -> str:
    """Markers and everything between them, cards before processors; deterministic in the rows.

    Raises ``ValueError`` for rows of code that was never committed: nobody could measure them again.
    """
    for row in rows:
        if row.commit.endswith("+changes"):
            raise ValueError(f"{row.suite} {row.case} was measured with uncommitted changes ({row.commit}); measure it again")
    parts = [BEGIN]
    devices = by_device(select(rows, "e2e")).items()
    for (device, dtype), here in sorted(devices, key=lambda item: not any(map(on_card, item[1]))):
        tables = (beside_summary(here), speed_summary(here))
        parts += [f"**{device}, {dtype}**, {made(here)}", *(table for table in tables if table)]
    return "\n\n".join([*parts, END])


def made(rows: list[Row]) -> str:
    """When and from which commits, with the release of PyTorch; the report has the other versions."""
    releases = ", ".join(sorted({row.versions.get("torch", "unknown") for row in rows}))
    commits, dates = dict.fromkeys(row.commit for row in rows), sorted({row.date[:10] for row in rows})
    return f"torch {releases}, commit {', '.join(commits)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}:"


def update_block(text: str, block: str, name: str) -> str:
    """``text`` with what lies between the bench markers replaced; raises ``ValueError`` unless there is one pair."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{name} needs one pair of markers, {BEGIN} and {END}")
    return text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]
