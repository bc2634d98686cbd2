"""The page on distilled guidance: an adapter at the cost of unguided sampling beside the rule that it stands for."""

from collections.abc import Sequence

from ..quality.interval import interval_of
from ..quality.judges import short_name
from ..quality.rows import REAL, split_metric
from ..quality.tables import judged_metrics, metric_title, shown
from ..quality.tuning import UNGUIDED
from ..rows import Row
from ..scores.units import EFFECTIVE
from ..tables import GUIDED, markdown_table
from .claims import AGREES, DIFFERS, OPEN, Claim
from .page import LEAST, Content, Missing
from .scored_rules import few_samples, samples_of

COMMAND, TITLE = "distilled", "Distilled guidance"
SUITE, DISTANCE = "distilled", "relative distance from the exact rule"
MOST = 0.5  # of unguided's distance, which a distilled sample may have


def distilled_content(rows: Sequence[Row], base: str, adapted: str, rule: str, tail: str, far: str, command: str) -> Content:
    """Unguided, the exact ``rule`` and its adapter, by rows of the cases that end with ``tail``, and the distances ``far``."""
    lines_of = {"unguided": (base, UNGUIDED), f"exact `{rule}`": (base, rule), "its adapter, unguided": (adapted, UNGUIDED)}
    found = {name: _rows(rows, f"{networks}, {tail}", text) for name, (networks, text) in lines_of.items()}
    real = _rows(rows, f"{base}, {tail}", REAL)
    distances = {row.variant: row for row in rows if (row.suite, row.case) == (SUITE, far) and row.n >= LEAST}
    metrics = judged_metrics([row for own in found.values() for row in own.values()])
    lines, missing = [], []
    for name, own in found.items():
        if any(metric in own for metric in metrics):
            networks, text = lines_of[name]
            row = distances.get(networks if networks == adapted else UNGUIDED) if text == UNGUIDED else None
            lines.append([name, *_cells(own, metrics), f"{row.value:.3f} ({row.p20:.3f} to {row.p80:.3f})" if row else ""])
        else:
            networks, text = lines_of[name]
            missing.append(Missing(name, few_samples(rows, (networks,), tail, text), command))
    if real and lines:
        lines.append([REAL, *_cells(real, metrics), ""])
    counts = {row.variant: row.n for row in rows if (row.suite, row.case) == (SUITE, far)}
    for each in (UNGUIDED, adapted):
        if each not in distances:
            missing.append(Missing(f"distance of {each}", counts.get(each, 0), command))
    header = ["samples", "cost", "effective scale", *map(metric_title, metrics), f"{DISTANCE}, median (20 to 80 %)"]
    table = markdown_table(header, lines)
    parts = [f"**{base}, {tail}; distances: {far}**", table] if table else []
    claims = score_claims(list(found.values()), metrics) + distance_claims(distances, adapted)
    used = [row for own in (*found.values(), real) for row in own.values()] + list(distances.values())
    told = [row for row in rows if row.suite == "duration"]
    return Content(parts, claims, missing, [*used, *told] if used else [])


def _rows(rows: Sequence[Row], case: str, rule: str) -> dict[str, Row]:
    """The rows of a rule by metric, of at least :data:`.page.LEAST` samples."""
    return {row.metric: row for row in rows if row.case == case and row.variant == rule and samples_of(row) >= LEAST}


def _cells(own: dict[str, Row], metrics: Sequence[str]) -> list[str]:
    cost = f"{own[GUIDED].value:.2f}x" if GUIDED in own else ""
    scale = f"{own[EFFECTIVE].value:.2f}" if EFFECTIVE in own else ""
    return [cost, scale, *(shown(interval_of(own[metric])) if metric in own else "" for metric in metrics)]


def score_claims(found: Sequence[dict[str, Row]], metrics: Sequence[str]) -> list[Claim]:
    """That the adapter scores as the exact rule does: their intervals have a point in common."""
    _, exact, adapted = found
    claims = []
    for metric in metrics:
        if metric in exact and metric in adapted:
            one, other = interval_of(exact[metric]), interval_of(adapted[metric])
            score, judge = split_metric(metric)
            measured = f"{score}: exact {shown(one)}, adapter {shown(other)}"
            verdict = DIFFERS if one.apart(other) else AGREES
            claims.append(Claim(f"by {short_name(judge)}", "one evaluation scores as the exact rule does", measured, verdict))
    return claims


def distance_claims(distances: dict[str, Row], adapted: str) -> list[Claim]:
    """That finished samples are nearer to the exact rule's than unguided ones are, by at least half."""
    if UNGUIDED not in distances or adapted not in distances:
        return []
    own, unguided = distances[adapted].value, distances[UNGUIDED].value
    verdict = AGREES if own <= MOST * unguided else DIFFERS if own >= unguided else OPEN
    measured = f"median distance {own:.3f}, unguided {unguided:.3f}: {1 - own / unguided:.0%} of the way"
    return [Claim("finished samples", f"the adapter takes at least {MOST:.0%} of the way to the exact rule", measured, verdict)]
