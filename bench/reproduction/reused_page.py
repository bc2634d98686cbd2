"""The page on reused directions: every rule with directions held, extrapolated, and computed at the calls of a search."""

from collections.abc import Iterable, Mapping, Sequence

from ..quality.interval import student_interval
from ..rows import Row
from ..scores.intervals import Interval
from ..tables import GUIDED, markdown_table
from .claims import AGREES, DIFFERS, OPEN, Claim
from .page import Content, Missing

SUITE, COMMAND, TITLE = "reused", "reused", "Reused directions"
ERROR, EXACT = "error of finished samples", "exact"
LEAST = 96  # samples of a row
AIMED_AT = "sgg"  # the rule that the aims are of


def regular(refresh: int, order: int) -> str:
    """The variant that computes directions at every ``refresh``-th call."""
    return f"every {refresh} calls, order {order}"


# the most that samples may err by: of directions at every second call, and of a search by the cost that it keeps to
REGULAR_AIMS = {regular(2, 1): 0.03}  # held directions are what this is compared with
COST_AIMS = ((1.155, 0.20), (1.23, 0.08))  # the first whose cost is not exceeded


def reused_content(rows: Sequence[Row], networks: str, asked: Mapping[tuple[str, str], str]) -> Content:
    """A table for every case of ``networks``, of its rows.

    What is missing is so among ``asked``: by case and variant the command that measures it.
    """
    mine = [row for row in rows if row.suite == SUITE and row.case.startswith(f"{networks}, ")]
    parts, used, claims = [], [], []
    for case in dict.fromkeys(row.case for row in mine):
        own = [row for row in mine if row.case == case and (row.metric != ERROR or row.n >= LEAST)]
        variants = dict.fromkeys(row.variant for row in own if row.metric == ERROR)
        if variants:
            found = {(row.variant, row.metric): row for row in own}
            lines = [_line(found, variant) for variant in variants]
            parts += [f"**{case}**", markdown_table(("directions", "cost", "error (95 %)", "rule"), lines)]
            used += own
            claims += _claims(case.removeprefix(f"{networks}, "), found, variants)
    samples = {(row.case, row.variant): row.n for row in mine if row.metric == ERROR}
    missing = [
        Missing(f"{key[0].removeprefix(f'{networks}, ')}: {key[1]}", samples.get(key, 0), command)
        for key, command in asked.items()
        if samples.get(key, 0) < LEAST
    ]
    durations = [row for row in rows if row.suite == "duration"]
    return Content(parts, claims, missing, [*used, *durations] if used else [], LEAST)


def _claims(case: str, found: Mapping[tuple[str, str], Row], variants: Iterable[str]) -> list[Claim]:
    """What this project aims at for segmented guidance, beside the errors of a case by their intervals."""
    rule = case.partition(", 28 steps")[0]
    if rule.partition(":")[0] != AIMED_AT or rule == case:
        return []
    claims = []
    for variant in variants:
        cost = found[variant, GUIDED].value
        aim = REGULAR_AIMS.get(variant) or next((error for most, error in COST_AIMS if cost <= most), None)
        if variant != EXACT and aim is not None:
            error = student_interval(found[variant, ERROR], least=0.0)
            verdict = AGREES if error.high <= aim else DIFFERS if error.low > aim else OPEN
            says = f"{variant}: an error of {aim:g} at most"
            claims.append(Claim(f"`{rule}`", says, f"{_shown(error)} at {cost:.3f}x", verdict))
    return claims


def _line(found: dict[tuple[str, str], Row], variant: str) -> list[str]:
    cost, error = found[variant, GUIDED], found[variant, ERROR]
    if variant == EXACT:
        return [variant, f"{cost.value:.3f}x", f"0; unguided differs by {error.value:.4f}", ""]
    return [variant, f"{cost.value:.3f}x", _shown(student_interval(error, least=0.0)), f"`{error.note}`"]


def _shown(error: Interval) -> str:
    return f"{error.value:.3f} ({error.low:.3f} to {error.high:.3f})"
