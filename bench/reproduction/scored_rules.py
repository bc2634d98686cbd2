"""Rows of quality as a comparison: rules beside CFG at their effective scale, by every judge, with verdicts by intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..quality.interval import interval_of
from ..quality.judges import short_name
from ..quality.rows import metric_by
from ..quality.score_command import equal_cfg, plain_scale
from ..quality.tables import TITLES, interval_text, judged_metrics, metric_title, values_by_rule
from ..quality.trial import parse_case
from ..rows import Row
from ..scores.intervals import Interval
from ..scores.units import ACCURACY, EFFECTIVE, FRECHET
from ..tables import GUIDED, markdown_table
from .page import LEAST

SIGNS = {ACCURACY: 1, FRECHET: -1}  # which way is better
NEAR = 0.01  # of effective scales: far below what 960 samples tell apart
BETTER, WORSE, LEVEL = "better", "worse", "not apart"


@dataclass(frozen=True)
class ScoredRules:
    """Rows of one case, of at least :data:`.page.LEAST` samples, by rule and metric."""

    table: Mapping[str, Mapping[str, Row]]
    rows: Sequence[Row]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "ScoredRules":
        """Those of ``rows`` that a table may hold."""
        enough = [row for row in rows if samples_of(row) >= LEAST]
        return cls(values_by_rule(enough), enough)

    def has(self, rule: str) -> bool:
        """Whether a judge saw the rule."""
        return any(metric in self.table.get(rule, {}) for metric in self.metrics)

    @property
    def metrics(self) -> list[str]:
        """What is shown: of each judge its accuracy, if it classifies, and its distance."""
        return judged_metrics(self.rows)

    @property
    def judges(self) -> list[str]:
        return list(dict.fromkeys(metric.partition(" by ")[2] for metric in self.metrics))

    def interval(self, rule: str, score: str, judge: str) -> Interval | None:
        """A score at 95 %; None where it is lacking."""
        row = self.table.get(rule, {}).get(metric_by(score, judge))
        return None if row is None else interval_of(row)

    def equal(self, rule: str) -> str | None:
        """CFG at the effective scale of a rule, or one that was scored within :data:`NEAR` of it.

        None where that is its own, or none above 1.
        """
        row = self.table.get(rule, {}).get(EFFECTIVE)
        wanted = None if row is None else next(iter(equal_cfg([row])), None)
        if row is None or wanted is None or self.has(wanted):
            return wanted
        scales = {other: scale for other in self.table if self.has(other) and (scale := plain_scale(other)) is not None}
        near = {other: away for other, scale in scales.items() if (away := abs(scale - row.value)) <= NEAR}
        return min(near, key=lambda other: near[other], default=wanted)

    def line(self, name: str, rule: str) -> list[str]:
        """The cells of a rule: cost, effective scale, the scores."""
        found = self.table.get(rule, {})
        cost = f"{found[GUIDED].value:.2f}x" if GUIDED in found else ""
        scale = f"{found[EFFECTIVE].value:.2f}" if EFFECTIVE in found else ""
        return [name, cost, scale, *(interval_text(found[m]) if m in found else "" for m in self.metrics)]

    def header(self, first: str = "rule") -> list[str]:
        """The titles of :meth:`line`."""
        return [first, "cost", "effective scale", *map(metric_title, self.metrics)]

    def beside_table(self, rules: Sequence[str]) -> str:
        """Every rule, and CFG at its effective scale in the line below it."""
        lines = []
        for rule in rules:
            if self.has(rule):
                lines.append(self.line(rule, rule))
                equal = self.equal(rule)
                if equal is not None and self.has(equal):
                    lines.append(self.line(f"&nbsp;&nbsp;{equal}", equal))
        return markdown_table(self.header(), lines)

    def comparison(self, rule: str, other: str, score: str, judge: str) -> str:
        """One of ``BETTER``, ``WORSE`` and ``LEVEL``, by intervals that have no point in common; nothing without both."""
        own, against = self.interval(rule, score, judge), self.interval(other, score, judge)
        if own is None or against is None:
            return ""
        if not own.apart(against):
            return LEVEL
        return BETTER if SIGNS[score] * (own.value - against.value) > 0 else WORSE

    def equal_sentences(self, rules: Sequence[str]) -> list[str]:
        """By every judge and score: which rules are better than CFG at their effective scale by more than the intervals."""
        sentences = []
        for judge in self.judges:
            for score, title in TITLES.items():
                found = {rule: self.comparison(rule, self.equal(rule) or "", score, judge) for rule in rules}
                found = {rule: how for rule, how in found.items() if how}
                if found:
                    parts = [f"{how} {listed(rules_of)}" for how, rules_of in _inverted(found).items()]
                    sentences.append(f"- {title} by {short_name(judge)}: {'; '.join(parts)}.")
        return sentences


def samples_of(row: Row) -> int:
    """How many samples a row of quality is of, by its case; 0 where that does not say."""
    case = parse_case(row.case)
    return 0 if case is None else case.trial.samples


def few_samples(rows: Sequence[Row], networks: Sequence[str], tail: str, rule: str) -> int:
    """How many samples of a rule there are at the network of which there are fewest."""
    counts = dict.fromkeys((f"{name}, {tail}" for name in networks), 0)
    counts |= {row.case: samples_of(row) for row in rows if row.case in counts and row.variant == rule and " by " in row.metric}
    return min(counts.values(), default=0)


def _inverted(found: Mapping[str, str]) -> dict[str, list[str]]:
    return {how: [rule for rule, own in found.items() if own == how] for how in (BETTER, LEVEL, WORSE) if how in found.values()}


def listed(rules: Sequence[str]) -> str:
    """Rules in a sentence."""
    return ", ".join(f"`{rule}`" for rule in rules)
