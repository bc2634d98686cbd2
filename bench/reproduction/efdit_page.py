"""The page on fine-grained networks: larger pictures, ProbSparse attention, tiered labels, with claims by intervals."""

from collections.abc import Mapping, Sequence

from ..quality.interval import interval_of
from ..quality.judges import short_name
from ..quality.rows import split_metric
from ..quality.tables import judged_metrics, metric_title, shown
from ..rows import Row
from ..scores.units import ACCURACY, FRECHET, SUPERCLASS
from ..tables import markdown_table
from .claims import AGREES, DIFFERS, Claim, by_intervals, in_all
from .page import LEAST, Content, Missing

COMMAND, TITLE = "efdit", "Fine-grained classes"
LARGER, SPARSE, TIERED = "herbarium at 64 pixels", "herbarium with ProbSparse attention", "16 leaves a species"
TIMED, REAL_LEAVES, SPECTRUM = "DiT-XL/2 at 512 pixels, one row", "real leaves", "efdit-spectrum.png"


def efdit_content(rows: Sequence[Row], drawn: Mapping[str, str], command: str) -> Content:
    """Tables of the rows whose samples were ``drawn`` so, by kind of case, their claims, and what is missing."""
    parts, claims, missing, used = [], [], [], []
    for case, title in ((LARGER, "Larger pictures"), (SPARSE, "ProbSparse attention"), (TIERED, "Tiered labels")):
        own = [row for row in rows if row.case.startswith(case) and row.case.endswith(drawn[case])]
        there = [row for row in own if row.n >= LEAST]
        if not there:
            missing.append(Missing(title.lower(), max((row.n for row in own), default=0), command))
            continue
        parts += [f"**{title}: {there[0].case}**", _table(there)]
        claims += _claims(case, there)
        used += there
    timed = [row for row in rows if row.case == TIMED]
    if timed:
        lines = [[row.metric.removeprefix("seconds, "), f"{row.value:.2f} ({row.p20:.2f} to {row.p80:.2f})"] for row in timed]
        parts.append(markdown_table(("seconds, ProbSparse over full attention", f"ratio, {timed[0].n} rounds"), lines))
        for row in timed:
            verdict = AGREES if row.p80 < 1 else DIFFERS
            claims.append(Claim("time", "ProbSparse attention takes less time", f"{row.metric}: {row.value:.2f}", verdict))
        used += timed
    return Content(parts, claims, missing, used)


def _table(rows: Sequence[Row]) -> str:
    metrics = [metric for metric in judged_metrics(rows) if split_metric(metric)[0] in (ACCURACY, SUPERCLASS, FRECHET)]
    found = {(row.variant, row.metric): row for row in rows}
    lines = [
        [name, *(shown(interval_of(found[name, metric])) if (name, metric) in found else "" for metric in metrics)]
        for name in dict.fromkeys(row.variant for row in rows)
    ]
    return markdown_table(["samples", *map(metric_title, metrics)], lines)


def _claims(case: str, rows: Sequence[Row]) -> list[Claim]:
    found = {(row.variant, row.metric): interval_of(row) for row in rows}
    claims = []
    if case == LARGER:
        for metric in dict.fromkeys(row.metric for row in rows if split_metric(row.metric)[0] == FRECHET):
            for other in ("bicubic", "zero-padding"):
                if {("enhancer", metric), (other, metric)} <= found.keys():
                    one, two = found["enhancer", metric], found[other, metric]
                    says = f"the enhancer is nearer to real leaves than {other}"
                    measured = f"{shown(one)} against {shown(two)}"
                    claims.append(Claim(short_name(split_metric(metric)[1]), says, measured, by_intervals(one, two, -1)))
    if case == TIERED:
        for score in (ACCURACY, SUPERCLASS):
            values = {row.variant: row.value for row in rows if split_metric(row.metric)[0] == score}
            seeds = [name.removeprefix("tiered, ") for name in values if name.startswith("tiered")]
            pairs = [(values[f"tiered, {s}"], values[f"flat, {s}"]) for s in seeds if f"flat, {s}" in values]
            if pairs:
                measured = ", ".join(f"{one:.3f} against {two:.3f}" for one, two in pairs)
                says = f"tiered labels give more {score} than flat ones of few images"
                claims.append(Claim("tiers", says, measured, in_all([one > two for one, two in pairs])))
    return claims
