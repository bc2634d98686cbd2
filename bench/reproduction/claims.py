"""A claim beside what was measured: whether it holds here, does not, or cannot be told."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..scores.intervals import Interval
from ..tables import markdown_table

AGREES, DIFFERS, OPEN = "agrees", "**does not**", "cannot be told"


@dataclass(frozen=True)
class Claim:
    """What is claimed where, what was measured, and one of ``AGREES``, ``DIFFERS`` and ``OPEN``."""

    where: str
    says: str
    measured: str
    verdict: str


def in_all(holds: Sequence[bool]) -> str:
    """The verdict of repetitions: it agrees where all do, and does not where none does; of none nothing can be told."""
    if not holds or (any(holds) and not all(holds)):
        return OPEN
    return AGREES if all(holds) else DIFFERS


def by_intervals(better: Interval, worse: Interval, sign: int) -> str:
    """The verdict of two scores of which the first is claimed to be better; ``sign`` is 1 where more is better, else -1."""
    if not better.apart(worse):
        return OPEN
    return AGREES if sign * (better.value - worse.value) > 0 else DIFFERS


def claim_table(claims: Sequence[Claim]) -> str:
    """One claim a line."""
    lines = [[claim.where, claim.says, claim.measured, claim.verdict] for claim in claims]
    return markdown_table(("where", "claim", "measured here", "ours"), lines)


def tally(claims: Sequence[Claim]) -> str:
    """How many of the claims agree, do not, and cannot be told."""
    if not claims:
        return "nothing is measured yet"
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in (AGREES, DIFFERS, OPEN)}
    words = {AGREES: "agree", DIFFERS: "do not", OPEN: "cannot be told"}
    return f"of {len(claims)} claims " + ", ".join(f"{count} {words[verdict]}" for verdict, count in counts.items() if count)
