"""The page on leaves in the plane: tables by setting, and the claims of figures 2 and 3 of the paper beside them."""

from collections.abc import Callable, Sequence

from ..rows import Row
from ..tables import markdown_table
from .claims import Claim, in_all
from .page import LEAST, Content, Missing
from .plane_scores import (
    CORRECTION,
    DENSITY,
    EFFECTIVE,
    EQUAL,
    ERROR,
    EVALUATIONS,
    FRECHET,
    METRICS,
    MISTAKEN,
    OUTSIDE,
    SPREAD,
    SUITE,
    by_rule,
    curve_of,
)

TITLE = "Two-dimensional leaves: figures 2 and 3"
COMMAND = "mixture"
TRAINED = "trained"  # networks
MIDDLE = 0.5  # the mean noise level of a correction that is the same at all
WELL, UNDER = "4 classes, depth 3", "24 classes, depth 1"
SHARES, SIGNED = (OUTSIDE, MISTAKEN), (DENSITY,)

Table = dict[str, dict[str, Row]]  # of one seed: rule, metric


def mixture_content(rows: Sequence[Row], switches: dict[str, float], pictures: Sequence[str]) -> Content:
    """What the rows of the suite say; ``switches`` are the levels where SGG changes over, by the study's name."""
    mine = [row for row in rows if row.suite == SUITE]
    enough = [row for row in mine if points_of(row) >= LEAST]
    few = {row.case: points_of(row) for row in mine if points_of(row) < LEAST}
    missing = [Missing(case, points, f"segue reproduce {COMMAND}") for case, points in few.items()]
    groups = grouped(enough)
    parts = [f"![{name}]({name})" for name in pictures]
    for group, seeds in groups.items():
        parts += [f"**{group}** ({seeds_text(len(seeds))})", setting_table(list(seeds.values()))]
    claims = []
    for group, seeds in groups.items():
        tables = list(seeds.values())
        if TRAINED in group:  # as the paper's: blurred mixtures only play networks
            claims += [*figure_two(group, tables), acting(group, tables)]
        parts.append(nearness(group, tables, switches[group.removesuffix(" networks").rpartition(", ")[0]]))
    durations = [row for row in rows if row.suite != SUITE]
    return Content(parts, claims, missing, [*enough, *durations] if enough else [])


def points_of(row: Row) -> int:
    """How many points the case of a row says."""
    return int(row.case.split(" points")[0].rpartition(" ")[2])


def grouped(rows: Sequence[Row]) -> dict[str, dict[str, Table]]:
    """Rows by setting without its seed, then by case; of several numbers of points the most."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)
    groups: dict[str, dict[str, Table]] = {}
    for case, own in sorted(cases.items(), key=lambda item: -points_of(item[1][0])):
        group = case[: case.index(" networks")] + " networks"
        known = groups.setdefault(group, {})
        if not known or points_of(own[0]) == points_of(_any(next(iter(known.values())))):
            known[case] = {rule: dict(found) for rule, found in by_rule(own).items()}
    return groups


def _any(table: Table) -> Row:
    return next(iter(next(iter(table.values())).values()))


def seeds_text(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds: the mean, lowest to highest"


def setting_table(tables: Sequence[Table]) -> str:
    """The rules of one setting, one a line, over its seeds."""
    lines = []
    for rule in tables[0]:
        cells = [cell([table[rule][metric].value for table in tables if metric in table[rule]], metric) for metric in METRICS]
        lines.append([rule, *cells])
    header = (
        "rule",
        EVALUATIONS,
        EFFECTIVE,
        OUTSIDE,
        MISTAKEN,
        "spread over the class's",
        "median log density over real",
        FRECHET,
    )
    return markdown_table(header, lines)


def cell(values: Sequence[float], metric: str) -> str:
    """A number over seeds: its mean, and where there are several the lowest and the highest."""
    if not values:
        return ""
    shown = [_shown(value, metric) for value in (sum(values) / len(values), min(values), max(values))]
    return shown[0] if len(values) == 1 or len(set(shown)) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _shown(value: float, metric: str) -> str:
    if metric in SHARES:
        return f"{value:.1%}"
    if metric == EVALUATIONS:
        return f"{value:.3g}"
    if metric in SIGNED:
        return f"{value:+.2f}"
    return f"{value:.4f}" if metric == FRECHET else f"{value:.2f}"


def _compared(tables: Sequence[Table], metric: str, first: str, second: str) -> str:
    """Two rules by one number, in words."""
    one, other = (cell([table[rule][metric].value for table in tables], metric) for rule in (first, second))
    return f"{metric}: {first} {one}, {second} {other}"


def _holds(tables: Sequence[Table], test: Callable[[Callable[[str, str], float]], bool]) -> str:
    """The verdict of a test of the numbers (rule, metric) of every seed."""
    return in_all([test(lambda rule, metric, table=table: table[rule][metric].value) for table in tables])


def figure_two(group: str, tables: Sequence[Table]) -> list[Claim]:
    """What guidance does to samples: one set of claims for well fitted networks, one for under-fitted ones."""
    where = f"figure 2, {group}"

    def claim(says: str, metric: str, first: str, second: str, test, where: str = where) -> Claim:
        return Claim(where, says, _compared(tables, metric, first, second), _holds(tables, test))

    if WELL in group:
        return [
            claim("CFG seeks modes: a class shrinks", SPREAD, "CFG", "none",
                  lambda of: of("CFG", SPREAD) < 0.9 * of("none", SPREAD)),
            claim("a weak network keeps the diversity that CFG loses", SPREAD, "weak", "CFG",
                  lambda of: abs(of("weak", SPREAD) - 1) < abs(of("CFG", SPREAD) - 1)),
            claim("SGG keeps more diversity than CFG", SPREAD, "SGG", "CFG",
                  lambda of: abs(of("SGG", SPREAD) - 1) < abs(of("CFG", SPREAD) - 1)),
            claim("SGG leaves fewer outliers than either guidance", OUTSIDE, "SGG", "CFG",
                  lambda of: of("SGG", OUTSIDE) < min(of("CFG", OUTSIDE), of("weak", OUTSIDE))),
            claim("SGG is better than CFG at its effective scale", FRECHET, "SGG", f"{EQUAL}SGG",
                  lambda of: of("SGG", FRECHET) < of(f"{EQUAL}SGG", FRECHET), f"fair comparison, {group}"),
        ]  # fmt: skip
    return [
        claim("a weak network leaves outliers that CFG pulls back", OUTSIDE, "weak", "CFG",
              lambda of: of("weak", OUTSIDE) > 1.5 * of("CFG", OUTSIDE)),
        claim("CFG takes samples to their class", MISTAKEN, "CFG", "weak",
              lambda of: of("CFG", MISTAKEN) < 0.5 * of("weak", MISTAKEN)),
        claim("SGG leaves fewer outliers than the weak network", OUTSIDE, "SGG", "weak",
              lambda of: of("SGG", OUTSIDE) < of("weak", OUTSIDE)),
        claim("SGG keeps more diversity than CFG", SPREAD, "SGG", "CFG",
              lambda of: abs(of("SGG", SPREAD) - 1) < abs(of("CFG", SPREAD) - 1)),
        claim("SGG is better than CFG at its effective scale", FRECHET, "SGG", f"{EQUAL}SGG",
              lambda of: of("SGG", FRECHET) < of(f"{EQUAL}SGG", FRECHET), f"fair comparison, {group}"),
    ]  # fmt: skip


def acting(group: str, tables: Sequence[Table]) -> Claim:
    """Where in the noise each guidance acts."""
    centres = {rule: [centre(curve_of(table[rule][CORRECTION])) for table in tables] for rule in ("CFG", "weak")}
    return Claim(
        f"figure 3, {group}",
        "CFG's correction is concentrated at high noise, a weak network's at low",
        f"mean noise level of the correction: CFG {cell(centres['CFG'], '')}, weak {cell(centres['weak'], '')}",
        in_all([high > MIDDLE > low for high, low in zip(centres["CFG"], centres["weak"], strict=True)]),
    )


def nearness(group: str, tables: Sequence[Table], switch: float) -> str:
    """How far the guided velocity is from the exact one on both sides of the switch, in a sentence."""
    sides = []
    for above in (True, False):
        errors = {
            rule: cell([mean_side(curve_of(table[rule][ERROR]), switch, above) for table in tables], "")
            for rule in ("none", "CFG", "weak")
        }
        sides.append(
            f"{'above' if above else 'below'} {switch:g} " + ", ".join(f"{rule} {own}" for rule, own in errors.items())
        )
    return f"Mean distance of the velocity to the exact one, {group}: {'; '.join(sides)}."


def centre(curve: Sequence[tuple[float, float]]) -> float:
    """The mean noise level of a curve, by its values; levels are uneven, so each counts by the interval that it stands for."""
    widths = _widths(curve)
    mass = sum(width * value for width, (_, value) in zip(widths, curve, strict=True))
    return sum(width * sigma * value for width, (sigma, value) in zip(widths, curve, strict=True)) / mass


def mean_side(curve: Sequence[tuple[float, float]], switch: float, above: bool) -> float:
    """The mean of a curve over the levels on one side of the switch."""
    side = [pair for pair in curve if (pair[0] > switch) == above]
    widths = _widths(side)
    return sum(width * value for width, (_, value) in zip(widths, side, strict=True)) / sum(widths)


def _widths(curve: Sequence[tuple[float, float]]) -> list[float]:
    """Half of the way to both neighbours, for levels that rise."""
    levels = [sigma for sigma, _ in curve]
    ends = [levels[0], *((a + b) / 2 for a, b in zip(levels, levels[1:], strict=False)), levels[-1]]
    return [high - low for low, high in zip(ends, ends[1:], strict=False)]
