"""The page on fine-grained networks: larger pictures, ProbSparse attention, tiered labels, with claims by intervals."""

from collections.abc import Mapping, Sequence

from ..quality.interval import interval_of
from ..quality.judges import short_name
from ..quality.rows import split_metric
from ..quality.tables import judged_metrics, metric_title, shown
from ..rows import Row
from ..scores.intervals import Interval, mean_interval
from ..scores.units import ACCURACY, FRECHET, SUPERCLASS
from ..tables import markdown_table
from .claims import AGREES, DIFFERS, OPEN, Claim, by_intervals
from .page import LEAST, Content, Missing

COMMAND, TITLE = "efdit", "Fine-grained classes"
LARGER, SPARSE, TIERED = "herbarium at 64 pixels", "herbarium with ProbSparse attention", "16 leaves a species"
TIMED, REAL_LEAVES, SPECTRUM = "DiT-XL/2 at 512 pixels, one row", "real leaves", "efdit-spectrum.png"
# by kind of case: its title, and the part of the command that measures it
KINDS = {
    LARGER: ("Larger pictures", "upscaling"),
    SPARSE: ("ProbSparse attention", "attention"),
    TIERED: ("Tiered labels", "tiers"),
}
# what tiered labels are said to do beside flat ones, and whether that is more (1) or less (-1) of a score
OF_TIERS = {
    ACCURACY: ("tiered labels give more accuracy than flat ones of few images", 1),
    SUPERCLASS: ("tiered labels give more superclass accuracy than flat ones of few images", 1),
    FRECHET: ("tiered labels bring samples nearer to real leaves than flat ones of few images", -1),
}
NO_DIFFERENCE = Interval(0.0, 0.0, 0.0)


def efdit_content(
    rows: Sequence[Row], drawn: Mapping[str, str], variants: Mapping[str, Sequence[str]], command: str, pictured: int = 0
) -> Content:
    """Tables of the rows whose samples were ``drawn`` so, by kind of case, their claims, and what is missing of ``variants``.

    ``pictured``: of how many samples each the picture of spectra shows the mean; 0 where there is no picture.
    """
    parts, claims, missing, used = [], [], [], []
    for case, (title, part) in KINDS.items():
        own = [row for row in rows if row.case.startswith(case) and row.case.endswith(drawn[case])]
        there = [row for row in own if row.n >= LEAST]
        missing += _missing(title, own, variants[case], f"{command} --part {part}")
        if there:
            parts += [f"**{title}: {there[0].case}**", _table(there, variants[case])]
            parts += _picture(pictured) if case == LARGER else []
            claims += _claims_on_tiers(there) if case == TIERED else _claims_on_larger(there) if case == LARGER else []
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


def _missing(title: str, rows: Sequence[Row], variants: Sequence[str], command: str) -> list[Missing]:
    """The ``variants`` that have too few samples; one line where all have."""
    samples = {variant: max((row.n for row in rows if row.variant == variant), default=0) for variant in variants}
    lacking = [variant for variant in variants if samples[variant] < LEAST]
    if len(lacking) == len(variants):
        return [Missing(title.lower(), max(samples.values(), default=0), command)]
    return [Missing(f"{title.lower()}: {variant}", samples[variant], command) for variant in lacking]


def _picture(pictured: int) -> list[str]:
    """The link to the picture of spectra, if there is one."""
    if not pictured:
        return []
    caption = f"The mean of {pictured} pictures each; dotted: the highest frequency that 32 pixels have room for."
    return [f"![Power by radial frequency]({SPECTRUM})", caption]


def _table(rows: Sequence[Row], variants: Sequence[str]) -> str:
    metrics = judged_metrics(rows, (ACCURACY, SUPERCLASS, FRECHET))
    found = {(row.variant, row.metric): row for row in rows}
    there = dict.fromkeys(row.variant for row in rows)
    lines = [
        [name, *(shown(interval_of(found[name, metric])) if (name, metric) in found else "" for metric in metrics)]
        for name in dict.fromkeys([*(variant for variant in variants if variant in there), *there])
    ]
    return markdown_table(["samples", *map(metric_title, metrics)], lines)


def _claims_on_larger(rows: Sequence[Row]) -> list[Claim]:
    """That the enhancer beats the plain ways, by the intervals of their samples."""
    found = {(row.variant, row.metric): interval_of(row) for row in rows}
    claims = []
    for metric in dict.fromkeys(row.metric for row in rows if split_metric(row.metric)[0] == FRECHET):
        for other in ("bicubic", "zero-padding"):
            if {("enhancer", metric), (other, metric)} <= found.keys():
                one, two = found["enhancer", metric], found[other, metric]
                says = f"the enhancer is nearer to real leaves than {other}"
                measured = f"{shown(one)} against {shown(two)}"
                claims.append(Claim(short_name(split_metric(metric)[1]), says, measured, by_intervals(one, two, -1)))
    return claims


def _claims_on_tiers(rows: Sequence[Row]) -> list[Claim]:
    """What tiered labels do, by the differences of the two networks of every seed."""
    claims = []
    for metric in judged_metrics(rows, OF_TIERS):
        values = {row.variant: row.value for row in rows if row.metric == metric}
        seeds = [name.removeprefix("tiered, ") for name in values if name.startswith("tiered")]
        pairs = [(values[f"tiered, {s}"], values[f"flat, {s}"]) for s in seeds if f"flat, {s}" in values]
        if pairs:
            score, judge = split_metric(metric)
            claims.append(Claim(f"tiers, by {short_name(judge)}", OF_TIERS[score][0], *_paired(pairs, OF_TIERS[score][1])))
    return claims


def _paired(pairs: Sequence[tuple[float, float]], sign: int) -> tuple[str, str]:
    """What the pairs of the seeds measured, and the verdict of Student's interval of their differences; of one pair none."""
    told = ", ".join(f"{one:.3f} against {two:.3f}" for one, two in pairs)
    if len(pairs) < 2:
        return f"one seed: {told}", OPEN
    difference = mean_interval([one - two for one, two in pairs])
    measured = f"paired difference over {len(pairs)} seeds {shown(difference)}: {told}"
    return measured, by_intervals(difference, NO_DIFFERENCE, sign)
