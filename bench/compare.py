"""Two sets of rows side by side: a difference counts when the spread of both does not explain it.

Ratios are formed inside interleaved rounds, so they can be compared between runs; times and rates also follow the machine.
"""

import math
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from .quality.interval import SUITE as QUALITY
from .quality.interval import interval_of
from .rows import Row, latest, parse_rows, read_rows
from .scores.units import SCALE, SCORE, SHARE

HIGHER_IS_BETTER = ("images/s", "TFLOP/s", "TB/s", "MHz", SHARE, SCORE)
COMMITTED = "bench/results"
# Two samples of one distribution differ by more than 4 standard errors of their medians in 3 % of the cases with 3 rounds, in
# 1 % with 5 and in 0.2 % with 9 (simulated, log-normal); and nobody acts on less than 5 %.
STANDARD_ERRORS, LEAST_CHANGE = 4.0, 0.05
LEAST_CHANGE_ONCE = 0.1  # of a value measured once, which has no spread
PERCENTILES_APART = 1.683  # 20th to 80th percentile of a normal distribution, in standard deviations
MEDIAN_ERROR = 1.2533  # standard error of a median, in those of a mean


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
        """Whether the medians differ by more than their spreads explain, and by enough to matter."""
        rows = (self.before, self.after)
        if self.before.suite == QUALITY:
            return interval_of(self.before).apart(interval_of(self.after))
        if min(row.n for row in rows) == 1:
            return abs(self.change) > LEAST_CHANGE_ONCE
        errors = math.hypot(*(MEDIAN_ERROR * (row.p80 - row.p20) / PERCENTILES_APART / math.sqrt(row.n) for row in rows))
        apart = abs(self.after.value - self.before.value)
        return apart > STANDARD_ERRORS * errors and abs(self.change) > LEAST_CHANGE

    @property
    def verdict(self) -> str:
        if not self.beyond_spread or self.before.unit == SCALE:
            return "same"
        rising = self.before.unit in HIGHER_IS_BETTER or self.before.metric.startswith("speed-up")
        return "better" if (self.after.value > self.before.value) == rising else "worse"

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


def environment_changes(before: list[Row], after: list[Row]) -> list[str]:
    """One line for everything but the commit that the two sides did not have alike: threads, packages, allocator."""
    sides = []
    for rows in (before, after):
        found: dict[str, set[str]] = {}
        for row in rows:
            for name, value in (row.versions | {"threads": str(row.threads)}).items():
                found.setdefault(name, set()).add(value)
        sides.append(found)
    old, new = sides
    names = sorted(old.keys() | new.keys())
    shown = {name: ["/".join(sorted(side.get(name, {"none"}))) for side in sides] for name in names}
    return [f"{name}: {was} before, {now} after" for name, (was, now) in shown.items() if was != now]


def load_side(source: str) -> list[Row]:
    """Rows of a result file, or of the result files committed at a git revision."""
    if Path(source).is_file():
        return read_rows(Path(source))
    listing = _git("ls-tree", "-r", "--full-tree", "--name-only", source, "--", COMMITTED)
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
