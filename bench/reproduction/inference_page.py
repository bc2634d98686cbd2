"""The page on guidance at inference: rules beside CFG at their effective scale, SGG over its switch, the paper's claims."""

from collections.abc import Sequence

from ..quality.judges import short_name
from ..quality.rows import REAL
from ..quality.tables import TITLES
from ..quality.tuning import UNGUIDED
from ..rows import Row
from ..scores.intervals import Interval
from ..scores.units import FRECHET
from ..tables import markdown_table
from .claims import DIFFERS, Claim, by_intervals, in_all
from .page import Content, Missing
from .rule_list import SEGMENTED, OwnRule
from .scored_rules import SIGNS, ScoredRules, samples_of

COMMAND, TITLE = "inference", "Guidance at inference"
BESIDE = "Beside CFG at the same effective scale (apart: intervals at 95 % have no point in common)"
RIVALS = ("cfg", "slg", "ag")  # what the paper's tables have SGG beat, beside no guidance


def inference_content(
    rows: Sequence[Row],
    own: Sequence[OwnRule],
    switched: Sequence[str],
    command: str,
    picture: str | None,
    case: str,
    unsearched: Sequence[str] = (),
) -> Content:
    """What rows of one case say of ``own`` rules and of SGG's switch; ``command`` scores a rule whose text is added to it.

    ``unsearched`` are rules whose numbers are not known yet.
    """
    scored = ScoredRules.of(rows)
    texts = [rule.text for rule in own]
    parts = [f"**{case}**", scored.beside_table([*texts, REAL])]
    sentences = scored.equal_sentences([text for text in texts if text != UNGUIDED])
    if sentences:
        parts += [f"{BESIDE}:", "\n".join(sentences)]
    parts += switch_parts(scored, switched, picture)
    wanted = list(dict.fromkeys([*texts, *switched, *(scored.equal(text) or text for text in texts)]))
    counts = {row.variant: samples_of(row) for row in rows if " by " in row.metric}
    missing = [Missing(text, counts.get(text, 0), f'{command} -g "{text}"') for text in wanted if not scored.has(text)]
    missing += [Missing(f"{name}: its numbers", 0, f"segue reproduce {COMMAND}") for name in unsearched]
    claims = inference_claims(scored, {rule.name: rule.text for rule in own}, switched)
    durations = [row for row in rows if row.suite == "duration"]
    used = [row for row in scored.rows if row.variant in {*wanted, REAL}]
    return Content(parts, claims, missing, [*used, *durations] if used else [])


def switch_parts(scored: ScoredRules, switched: Sequence[str], picture: str | None) -> list[str]:
    """The sweep of the switch: a table, and the picture of it."""
    there = [text for text in switched if scored.has(text)]
    if not there:
        return []
    lines = [scored.line(f"{switch_of(text):g}", text) for text in there]
    image = [f"![Accuracy and Frechet distance over the switch]({picture})"] if picture else []
    shown = there[0].rpartition(",switch=")[0]
    title = f"**`{shown}` over its switch** (CFG above, skipped layers below):"
    return [title, *image, markdown_table(scored.header("switch"), lines)]


def switch_of(text: str) -> float:
    """The noise level of a segmented rule's switch."""
    return float(text.rpartition("switch=")[2])


def inference_claims(scored: ScoredRules, own: dict[str, str], switched: Sequence[str]) -> list[Claim]:
    """That SGG beats the others at their own best numbers, and CFG at its effective scale; and where its switch lies."""
    claims = []
    sgg = own.get(SEGMENTED, "")
    for judge in scored.judges:
        for name in (UNGUIDED, *RIVALS):
            claims += _beats(scored, sgg, own.get(name, ""), judge, f"SGG beats {name}, each at its own best numbers")
        claims += _beats(scored, sgg, scored.equal(sgg) or "", judge, "SGG beats CFG at its effective scale")
        claims += _inner_switch(scored, switched, judge)
    return claims


def _beats(scored: ScoredRules, rule: str, other: str, judge: str, says: str) -> list[Claim]:
    """One claim by one judge, by the distance; the accuracies are told."""
    own, against = scored.interval(rule, FRECHET, judge), scored.interval(other, FRECHET, judge)
    if own is None or against is None:
        return []
    told = [f"{title} {_two(scored, rule, other, score, judge)}" for score, title in TITLES.items()]
    verdict = by_intervals(own, against, SIGNS[FRECHET])
    return [Claim(f"by {short_name(judge)}", says, ", ".join(piece for piece in told if piece[-1] != " "), verdict)]


def _two(scored: ScoredRules, rule: str, other: str, score: str, judge: str) -> str:
    own, against = scored.interval(rule, score, judge), scored.interval(other, score, judge)
    if own is None or against is None:
        return ""
    apart = "" if own.apart(against) else ", not apart"
    return f"{own.value:.3g} against {against.value:.3g}{apart}"


def _inner_switch(scored: ScoredRules, switched: Sequence[str], judge: str) -> list[Claim]:
    """Whether the best switch has worse ones on both sides of it; nothing while some are not scored."""
    found: list[tuple[float, Interval]] = []
    for text in switched:
        interval = scored.interval(text, FRECHET, judge)
        if interval is not None:
            found.append((switch_of(text), interval))
    if len(found) < max(3, len(switched)):
        return []
    found.sort(key=lambda pair: pair[0])
    level, best = min(found, key=lambda pair: pair[1].value)
    ends = [interval for _, interval in (found[0], found[-1])]
    inside = level not in (found[0][0], found[-1][0])
    verdict = in_all([best.apart(end) for end in ends]) if inside else DIFFERS
    sides = [f"{interval.value:.3g} at {at:g}" for at, interval in (found[0], found[-1])]
    measured = f"least FD {best.value:.3g} at {level:g}; {', '.join(sides)}"
    return [Claim(f"by {short_name(judge)}", "the best switch lies inside the noise levels", measured, verdict)]
