"""Weights of a rule by score: searched with one extractor on few samples, then judged by others on many, of other seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from segue.engine.rules.presets import KINDS, NamedRule, ParsedRule, parse_rule
from segue.models.spec import ModelSpec

from ..rows import Row
from ..scores.judge import Judge
from ..scores.units import ACCURACY, FRECHET
from ..tables import GUIDED
from .interval import interval_of, standard_error
from .judges import short_name
from .rows import metric_by
from .scoring import Scorer
from .search import Axis, Level, Point, Ratio, Value, search
from .tables import values_by_rule

UNGUIDED = "none"
STAGES = 2
# Distances from "off", a factor of about three apart, for rules of one number and for sums, whose grid is their product.
_ALONE, _IN_SUMS = (0.07, 0.2, 0.6, 1.8), (0.1, 0.35, 1.2)
_FACTORS = (1.7, 1.3)
OFF = {"scale": 1.0, "weight": 0.0}  # where a number does nothing
LEVELS = Level((0.5,), (0.2, 0.1))


class Searchable(Protocol):
    """A rule with numbers to search: the axes of these, and the rule's text at a point."""

    @property
    def axes(self) -> tuple[Axis, ...]: ...

    def at(self, point: Point) -> str: ...


@dataclass(frozen=True)
class Tunable:
    """A rule with the options that are searched; the others stay as they are."""

    rule: NamedRule
    options: tuple[str, ...]

    @classmethod
    def of(cls, text: str, spec: ModelSpec) -> "Tunable":
        """That of a rule's text; raises ``ValueError`` for a sum, and for a rule without a scale or weight."""
        parsed = parse_rule(text, spec)
        if len(parsed.parts) != 1:
            raise ValueError(f"weights are searched for one rule at a time, got the sum {parsed.text!r}")
        (rule,) = parsed.parts
        options = tuple(name for name in KINDS[rule.name].needed if name in (*OFF, "switch"))
        if not set(options) & set(OFF):
            raise ValueError(f"{rule.name} has no scale and no weight to search")
        return cls(rule, options)

    @property
    def axes(self) -> tuple[Axis, ...]:
        weights = [option for option in self.options if option in OFF]
        coarse = _ALONE if len(weights) == 1 else _IN_SUMS
        return tuple(Ratio(OFF[o], coarse, _FACTORS) if o in OFF else LEVELS for o in self.options)

    def at(self, point: Point) -> str:
        """The text of the rule with these numbers."""
        numbers = dict(zip(self.options, point, strict=True))
        options = tuple((name, numbers.get(name, value)) for name, value in self.rule.options)
        return ParsedRule((replace(self.rule, options=options),)).text


@dataclass(frozen=True)
class Score:
    """What a search goes by: the accuracy, None without a classifier, the distance, its standard error, and the cost."""

    accuracy: float | None
    distance: float
    error: float
    cost: float

    def value(self, unguided: "Score") -> Value:
        """What a search makes least: the accuracy that is missing, then the distance."""
        missing = 0.0 if self.accuracy is None or unguided.accuracy is None else unguided.accuracy - self.accuracy
        return (max(0.0, missing), self.distance)


def tune(scorer: Scorer, rule: Searchable) -> str:
    """The text of ``rule`` with the numbers of least distance whose accuracy is no lower than that of unguided samples.

    By the one judge of ``scorer``, of the same seeds.  Where no numbers keep the accuracy, those that lose least of it; of
    those that the distances do not tell apart, the cheapest.
    """
    scores: dict[Point, Score] = {}
    unguided = score_of(scorer, UNGUIDED)

    def judge(point: Point) -> Value:
        scores[point] = score_of(scorer, rule.at(point))
        return scores[point].value(unguided)

    best = search(rule.axes, STAGES, judge).best
    return rule.at(cheapest(scores, best, unguided))


def cheapest(scores: Mapping[Point, Score], best: Point, unguided: Score) -> Point:
    """The cheapest of the points that lack no more accuracy than the best, and whose distance is within the best one's error.

    Of equal cost the one of least distance.  Source: the one-standard-error rule, L. Breiman et al., Classification and
    Regression Trees (1984), 3.4.3.
    """
    missing, least = scores[best].value(unguided)
    allowed = least + scores[best].error
    level = [point for point, score in scores.items() if score.value(unguided)[0] <= missing and score.distance <= allowed]
    return min(level, key=lambda point: (round(scores[point].cost, 6), scores[point].distance))


def score_of(scorer: Scorer, text: str) -> Score:
    """That of a rule by the one judge of a scorer."""
    (judge,) = scorer.judges
    rows = {row.metric: row for row in scorer.score([text])}
    accuracy, distance = rows.get(metric_by(ACCURACY, judge.name)), rows[metric_by(FRECHET, judge.name)]
    known = None if accuracy is None else accuracy.value
    return Score(known, distance.value, standard_error(distance), rows[GUIDED].value)


BEATS, LEVEL, LOSES = "yes", "not clearly", "**no**"


@dataclass(frozen=True)
class Verdict:
    """A rule beside unguided sampling by one judge: one of ``BEATS``, ``LEVEL`` and ``LOSES``, and what it goes by."""

    judge: str
    outcome: str
    text: str


def verdicts(rows: Sequence[Row], rule: str, judges: Sequence[Judge]) -> list[Verdict]:
    """By every judge, on the seeds of both: a rule beats unguided sampling with less distance and no less accuracy.

    One of the two must be apart by its intervals; where neither is, it does so not clearly.
    """
    table, found = values_by_rule(rows), []
    for judge in judges:
        better, clear, words = True, False, []
        for score, sign in ((ACCURACY, 1), (FRECHET, -1)):
            metric = metric_by(score, judge.name)
            if metric not in table[rule]:
                continue
            own, other = (interval_of(table[name][metric]) for name in (rule, UNGUIDED))
            gain, apart = sign * (own.value - other.value), own.apart(other)
            better &= gain > 0 or (gain == 0 and score == ACCURACY)
            clear |= apart and gain > 0
            way = "as good" if gain == 0 else "better" if gain > 0 else "worse"
            words.append(f"{score} {'clearly ' if apart else ''}{way}")
        outcome = LOSES if not better else BEATS if clear else LEVEL
        found.append(Verdict(short_name(judge.name), outcome, ", ".join(words)))
    return found
