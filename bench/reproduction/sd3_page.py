"""The page on SD3: rules on the same prompts and seeds, paired differences with intervals, published values beside."""

from collections.abc import Sequence

from ..quality.tables import shown
from ..rows import Row
from ..scores.intervals import Interval, mean_interval
from ..tables import GUIDED, markdown_table
from .claims import AGREES, DIFFERS, OPEN, Claim
from .page import LEAST, Content, Missing
from .paper import PREFERENCE, PREFERENCE_SCORES

COMMAND, TITLE = "sd3", "Stable Diffusion 3 by prompts"
SUITE = "prompts"
AGAINST, SEGMENTED = "cfg", "sgg"


def sd3_content(
    rows: Sequence[Row], case: str, pictures: Sequence[str], rules: Sequence[str], scorers: Sequence[str], command: str
) -> Content:
    """What the rows of a case and its ``pictures``, their cases, say of ``rules`` by ``scorers``.

    Rules of fewer than :data:`.page.LEAST` pictures are missing.
    """
    known = {case, *pictures}
    mine = [row for row in rows if row.suite == SUITE and row.case in known]
    scores = {(rule, scorer): scores_by_prompt(mine, rule, scorer) for rule in rules for scorer in scorers}
    costs = {row.variant: row for row in mine if row.metric == GUIDED}
    enough = [rule for rule in rules if scorers and all(len(scores[rule, scorer]) >= LEAST for scorer in scorers)]
    counts = {rule: min((len(scores[rule, scorer]) for scorer in scorers), default=0) for rule in rules}
    missing = [Missing(rule, counts[rule], command) for rule in rules if rule not in enough]
    lines = [_line(rule, scores, costs, scorers, enough) for rule in enough]
    header = ["rule", "cost", "pictures"]
    for scorer in scorers:
        header += [scorer, f"{scorer}, less {AGAINST} (paired)"]
    table = markdown_table([*header, *(f"published {name}" for name in PREFERENCE_SCORES)], lines)
    parts = [f"**{case}**", table, "Published: SD3.5-medium on the prompts of COCO-1K."] if table else []
    claims = [claim for scorer in scorers for claim in _claims(scores, scorer, enough)]
    told = [row for row in rows if row.suite == "duration"]
    used = [row for row in mine if row.variant in enough]
    return Content(parts, claims, missing, [*used, *told] if used else [])


def scores_by_prompt(rows: Sequence[Row], rule: str, scorer: str) -> dict[str, float]:
    """The scores of a rule's pictures, by the case of the prompt."""
    return {row.case: row.value for row in rows if (row.variant, row.metric) == (rule, scorer)}


def paired(first: dict[str, float], second: dict[str, float]) -> Interval | None:
    """The mean difference over prompts that both have, with Student's interval; None for fewer than two."""
    common = [first[case] - second[case] for case in first if case in second]
    return mean_interval(common) if len(common) > 1 else None


def _line(rule: str, scores: dict, costs: dict[str, Row], scorers: Sequence[str], enough: Sequence[str]) -> list[str]:
    cost = f"{costs[rule].value:.2f}x" if rule in costs else ""
    cells = [rule if rule not in costs else f"{rule}: `{costs[rule].note}`", cost, str(len(scores[rule, scorers[0]]))]
    for scorer in scorers:
        against = paired(scores[rule, scorer], scores[AGAINST, scorer]) if AGAINST in enough and rule != AGAINST else None
        cells += [shown(mean_interval(list(scores[rule, scorer].values()))), shown(against) if against else ""]
    published = PREFERENCE.get(rule)
    return [*cells, *(f"{value:.2f}" for value in published or ())] + ([] if published else [""] * len(PREFERENCE_SCORES))


def _claims(scores: dict, scorer: str, enough: Sequence[str]) -> list[Claim]:
    """That SGG scores more than each of the others, by paired differences."""
    claims = []
    for rule in enough:
        if SEGMENTED in enough and rule != SEGMENTED and rule in PREFERENCE:
            difference = paired(scores[SEGMENTED, scorer], scores[rule, scorer])
            if difference is not None:
                verdict = AGREES if difference.low > 0 else DIFFERS if difference.high < 0 else OPEN
                says = f"SGG scores more than {rule}"
                claims.append(Claim(f"by {scorer}", says, f"paired difference {shown(difference)}", verdict))
    return claims
