"""Two sets of rows side by side: a difference counts when it is larger than the spread of both."""

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from .rows import Row, latest, parse_rows, read_rows

HIGHER_IS_BETTER = ("images/s", "TFLOP/s", "TB/s")
COMMITTED = "bench/results"


@dataclass(frozen=True)
class Difference:
    """One value measured twice.  ``verdict`` is ``same``, ``better`` or ``worse``."""

    before: Row
    after: Row

    @property
    def change(self) -> float:
        """Relative change of the median."""
        return self.after.value / self.before.value - 1 if self.before.value else 0.0

    @property
    def beyond_spread(self) -> bool:
        """Whether the two intervals from the 20th to the 80th percentile are disjoint."""
        return self.after.p20 > self.before.p80 or self.after.p80 < self.before.p20

    @property
    def verdict(self) -> str:
        if not self.beyond_spread:
            return "same"
        rising = self.before.unit in HIGHER_IS_BETTER or self.before.metric.startswith("speed-up")
        return "better" if (self.change > 0) == rising else "worse"

    def as_dict(self) -> dict:
        """The rows of both sides, the relative change and the verdict, for machines."""
        return {
            "verdict": self.verdict,
            "change": self.change,
            "before": asdict(self.before),
            "after": asdict(self.after),
        }

    def __str__(self) -> str:
        before, after = self.before, self.after
        return (
            f"{self.verdict:>6}  {self.change:+7.1%}  {before.suite} {before.case} | {before.variant} | {before.metric}: "
            f"{before.value:.4g} ({before.p20:.4g} to {before.p80:.4g}) -> "
            f"{after.value:.4g} ({after.p20:.4g} to {after.p80:.4g}) {before.unit}"
        )


def compare(before: list[Row], after: list[Row]) -> tuple[list[Difference], list[str]]:
    """Differences of the rows both sides have, worst first, and a line for every row that only one side has.

    Raises ``ValueError`` when the two sides have no row in common.
    """
    old, new = ({row.key: row for row in latest(rows)} for rows in (before, after))
    common = [key for key in old if key in new]
    if not common:
        raise ValueError(f"the two results have no row in common ({len(old)} and {len(new)} rows)")
    order = {"worse": 0, "better": 1, "same": 2}
    differences = sorted((Difference(old[key], new[key]) for key in common), key=lambda d: (order[d.verdict], -abs(d.change)))
    lone = [f"only before: {old[key]}" for key in old if key not in new]
    lone += [f"only after: {new[key]}" for key in new if key not in old]
    return differences, lone


def load_side(source: str) -> list[Row]:
    """Rows of a result file, or of the result files committed at a git revision."""
    if Path(source).is_file():
        return read_rows(Path(source))
    listing = _git("ls-tree", "-r", "--name-only", source, "--", COMMITTED)
    if listing is None:
        raise ValueError(f"{source!r} is neither a result file nor a git revision")
    names = [name for name in listing.splitlines() if name.endswith(".jsonl")]
    if not names:
        raise ValueError(f"revision {source!r} has no result files in {COMMITTED}")
    return [row for name in names for row in parse_rows(_git("show", f"{source}:{name}") or "", f"{source}:{name}")]


def _git(*arguments: str) -> str | None:
    """Output of a git command, None when it fails or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
