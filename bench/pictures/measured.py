"""What committed rows say of the rules on one model, as one judge sees them; rows of other weights are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..quality.interval import SUITE, interval_of
from ..quality.judges import short_name
from ..quality.origins import Origin, origins
from ..quality.rows import REAL, metric_by
from ..quality.tables import TITLES, by_case, interval_text, values_by_rule
from ..quality.trial import Case, parse_case
from ..quality.tuning import UNGUIDED
from ..rows import Row
from ..scores.intervals import Interval
from ..scores.units import FRECHET
from ..tables import GUIDED


@dataclass(frozen=True)
class Measured:
    """Rows of one case by rule and metric, and the judge, by the name in the rows, whose scores count.

    ``made`` are networks that came of these, the first seed of each, with their unguided rows by metric, drawn as the others.
    """

    case: Case
    judge: str
    table: Mapping[str, Mapping[str, Row]]
    made: tuple[tuple[Origin, Mapping[str, Row]], ...] = ()

    @classmethod
    def of(cls, rows: Sequence[Row], networks: str, judge: str, source: Path) -> "Measured":
        """The rows of ``networks`` (:func:`..quality.trial.networks_of`) that are of the most samples, then of the most rules.

        Raises ``ValueError`` naming ``source`` where all rows are of other networks or of none that ``judge`` saw.
        """
        cases = [(parse_case(case), own) for (case, _), own in by_case(rows).items()]
        cases = [(case, own) for case, own in cases if case is not None]
        ours = [(case, own) for case, own in cases if case.networks == networks]
        if not ours:
            others = ", ".join(dict.fromkeys(case.networks for case, _ in cases))
            held = f"of {others}, and not of {networks}, which is the model" if others else f"none of the suite {SUITE}"
            raise ValueError(f"the scores in {source} are {held}: score it by segue score")
        seen = [(case, values_by_rule(own)) for case, own in ours if metric_by(FRECHET, judge) in {row.metric for row in own}]
        if not seen:
            judges = sorted({row.metric.partition(" by ")[2] for _, own in ours for row in own} - {""})
            raise ValueError(f"the scores in {source} are by {', '.join(judges)}, and not by {judge}: segue score has it judge")
        case, table = max(seen, key=lambda each: (each[0].trial.samples, len(each[1])))
        return cls(case, judge, table, made_of(rows, case))

    @property
    def rules(self) -> list[str]:
        """The rules that the judge saw, by their text, without the real samples."""
        return [rule for rule in self.table if rule != REAL and self.row(rule, FRECHET) is not None]

    def row(self, rule: str, score: str) -> Row | None:
        """The row of a score of a rule by the judge; None where it is lacking."""
        return self.table.get(rule, {}).get(metric_by(score, self.judge))

    def interval(self, rule: str, score: str) -> Interval | None:
        """A score of a rule by the judge with its interval at 95 %; None where it is lacking."""
        row = self.row(rule, score)
        return None if row is None else interval_of(row)

    def cost(self, rule: str) -> float:
        """FLOPs of a sample relative to unguided sampling; raises ``KeyError`` for a rule that was not scored."""
        return self.table[rule][GUIDED].value

    def texts(self, rule: str) -> dict[str, str]:
        """Accuracy and distance of a rule with their intervals, by the names that tables use; none for one not scored."""
        found = {title: self.row(rule, score) for score, title in TITLES.items()}
        return {title: interval_text(row) for title, row in found.items() if row is not None}

    def footing(self) -> str:
        """How many samples were judged by whom beside what."""
        return f"{self.drawn}, judged by {short_name(self.judge)}; intervals at 95 %"

    @property
    def drawn(self) -> str:
        """How many samples were judged beside what."""
        return f"{self.case.trial.samples} samples a rule beside {self.case.real}"


def made_of(rows: Sequence[Row], case: Case) -> tuple[tuple[Origin, Mapping[str, Row]], ...]:
    """The networks that came of those of a case, the first seed of each, with their unguided rows of the same drawing."""
    drawn: dict[str, Mapping[str, Row]] = {}
    for (text, _), own in by_case(rows).items():
        found, unguided = parse_case(text), values_by_rule(own).get(UNGUIDED)
        if found is not None and unguided and (found.trial, found.real) == (case.trial, case.real):
            drawn[found.networks] = unguided
    known = sorted(origins(rows, case.networks), key=lambda origin: origin.facts.get("seed", 0))
    first = {(origin.kind, origin.name): origin for origin in reversed(known) if origin.networks in drawn}
    return tuple((origin, drawn[origin.networks]) for origin in reversed(first.values()))
