"""The page on all named rules: each at the best of its strengths, and the main ones at every strength."""

from collections.abc import Mapping, Sequence

from ..quality.rows import REAL, metric_by
from ..quality.scoring import EVALUATIONS
from ..quality.tables import interval_text, metric_title
from ..quality.tuning import UNGUIDED
from ..rows import Row
from ..scores.units import FRECHET
from ..tables import markdown_table
from .inference_page import BESIDE
from .page import Content, Missing
from .rule_sweep import Swept
from .rule_times import RATIO
from .rule_times import SUITE as TIMES
from .scored_rules import ScoredRules, listed, samples_of

COMMAND, TITLE = "rules", "All rules on one model"
TIME, RECALL = "time", "recall"  # recall by the first judge: variety, which neither accuracy nor distance alone shows
LACKING = ""


def best_text(scored: ScoredRules, rule: Swept) -> str | None:
    """The text of least distance by the first judge who saw any, of those that were scored; None where none was."""
    for judge in scored.judges:
        found = {text: scored.interval(text, FRECHET, judge) for text in rule.texts.values()}
        values = {text: interval.value for text, interval in found.items() if interval is not None}
        if values:
            return min(values, key=values.__getitem__)
    return None


def best_texts(rows: Sequence[Row], rules: Sequence[Swept]) -> list[str]:
    """The texts that the page shows, rule by rule."""
    scored = ScoredRules.of(rows)
    return [text for rule in rules if (text := best_text(scored, rule)) is not None]


def rules_content(rows: Sequence[Row], rules: Sequence[Swept], case: str, command: str, picture: str | None) -> Content:
    """What rows say of ``rules``; ``command`` scores a rule whose text is added to it."""
    scored = ScoredRules.of(rows)
    times = {row.variant: row for row in rows if row.suite == TIMES and row.metric == RATIO}
    texts = {rule.name: text for rule in rules if (text := best_text(scored, rule)) is not None}
    parts = []
    if texts:
        own = {rule.name: rule.own for rule in rules}
        shown = _shown(scored, {text: times.get(own[name]) for name, text in texts.items()})
        parts = [f"**{case}**", shown]
        compared = [text for text in texts.values() if _equal(scored, text)]
        beside = scored.equal_sentences(compared)
        parts += [f"{BESIDE}:", "\n".join(beside)] if beside else []
        alone = [text for text in texts.values() if text not in compared and scored.equal(text) is not None]
        if alone:
            parts.append(f"Without CFG at their effective scale: {listed(alone)}; `{command} --beside-cfg` scores it.")
        parts += _swept_parts(scored, rules)
        parts += [f"![The same leaves by every rule]({picture})"] if picture else []
    counts = {row.variant: samples_of(row) for row in rows if " by " in row.metric}
    wanted = [text for rule in rules for text in rule.texts.values()]
    missing = [Missing(text, counts.get(text, 0), f'{command} -g "{text}"') for text in wanted if not scored.has(text)]
    equal = [cfg for text in texts.values() if (cfg := _equal(scored, text))]
    used = [row for row in scored.rows if row.variant in {*wanted, *equal, REAL}]
    others = [row for row in rows if row.suite == "duration" or row in times.values()]
    return Content(parts, missing=missing, rows=[*used, *others] if used else [])


def _shown(scored: ScoredRules, times: Mapping[str, Row | None]) -> str:
    """Every rule, below it CFG at its effective scale where that was scored, and real samples; times where there are any."""
    lines = []
    for text, time in times.items():
        lines.append(_line(scored, text, time))
        if (equal := _equal(scored, text)) is not None:
            lines.append(_line(scored, equal, None, f"&nbsp;&nbsp;{equal}"))
    lines += [_line(scored, REAL, None)] if scored.has(REAL) else []
    first, cost, *others = scored.header()
    recall = metric_title(metric_by(RECALL, scored.judges[0]))
    header = [first, "evaluations", cost, TIME, *others, recall]
    held = [place for place, title in enumerate(header) if title not in (TIME, recall) or any(line[place] for line in lines)]
    return markdown_table([header[place] for place in held], [[line[place] for place in held] for line in lines])


def _equal(scored: ScoredRules, text: str) -> str | None:
    equal = scored.equal(text)
    return equal if equal is not None and scored.has(equal) else None


def _line(scored: ScoredRules, text: str, time: Row | None, name: str | None = None) -> list[str]:
    first, cost, *others = scored.line(name or (f"`{text}`" if text not in (UNGUIDED, REAL) else text), text)
    evaluations = scored.table.get(text, {}).get(EVALUATIONS)
    counted = LACKING if evaluations is None else f"{evaluations.value:g}"
    recall = scored.table.get(text, {}).get(metric_by(RECALL, scored.judges[0]))
    variety = LACKING if recall is None else interval_text(recall)
    taken = LACKING if time is None else f"{time.value:.2f}x ({time.p20:.2f} to {time.p80:.2f})"
    return [first, counted, cost, taken, *others, variety]


def _swept_parts(scored: ScoredRules, rules: Sequence[Swept]) -> list[str]:
    """A table of the rules that were drawn at several strengths."""
    lines = []
    for rule in rules:
        there = {factor: text for factor, text in sorted(rule.texts.items()) if scored.has(text)}
        if len(there) > 1:
            best = best_text(scored, rule)
            lines += [scored.line(f"**`{text}`**" if text == best else f"`{text}`", text) for text in there.values()]
    if not lines:
        return []
    return ["Strengths; that of least distance by the first judge in bold:", markdown_table(scored.header(), lines)]
