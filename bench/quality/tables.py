"""Rows of quality as Markdown tables: rules by cost, accuracy and distance, and how far judges agree on their order."""

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from ..rows import Row
from ..scores.intervals import Interval
from ..scores.units import ACCURACY, EFFECTIVE, FRECHET
from ..tables import GUIDED, markdown_table, provenance
from .interval import SUITE, interval_of
from .judges import short_name
from .rows import REAL, confused, key_of, split_metric

TITLES = {ACCURACY: "accuracy", FRECHET: "FD"}  # what a table shows of a judge, in this order
LEAST_RANKED = 3  # rules, for a correlation of ranks to say something


def by_case(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The last rows of quality of every key, by case and precision, in order of first appearance."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in {key_of(row): row for row in rows if row.suite == SUITE}.values():
        found.setdefault((row.case, row.dtype), []).append(row)
    return found


def values_by_rule(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """The rows of one case by variant and metric."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.variant, {})[row.metric] = row
    return found


def judged_metrics(rows: Sequence[Row], scores: Iterable[str] = TITLES) -> list[str]:
    """The metrics that a table shows, in order: of each judge those of ``scores`` that it has."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    judges = dict.fromkeys(split_metric(metric)[1] for metric in metrics)
    return [m for judge in judges for score in scores for m in metrics if split_metric(m) == (score, judge)]


def score_table(rows: Sequence[Row]) -> str:
    """The rules of one case, one a line: cost, effective scale, then accuracy and Frechet distance with intervals at 95 %."""
    metrics, lines = judged_metrics(rows), []
    scaled = any(row.metric == EFFECTIVE for row in rows)
    for rule, found in values_by_rule(rows).items():
        if not any(metric in found for metric in metrics):
            continue
        cost = [f"{found[GUIDED].value:.2f}x" if GUIDED in found else ""]
        scale = [f"{found[EFFECTIVE].value:.2f}" if EFFECTIVE in found else ""] if scaled else []
        lines.append([rule, *cost, *scale, *(interval_text(found[m]) if m in found else "" for m in metrics)])
    header = ["rule", "cost", *(["effective scale"] if scaled else []), *map(metric_title, metrics)]
    return markdown_table(header, lines)


def summary(rows: Sequence[Row]) -> list[str]:
    """A line for every rule of new rows: what it costs and what the judges say."""
    lines = []
    for rule, found in values_by_rule(rows).items():
        said = [f"{metric_title(m)} {interval_text(found[m])}" for m in judged_metrics(rows) if m in found]
        cost = [f"{found[GUIDED].value:.2f}x"] if GUIDED in found else []
        lines.append(f"{rule}: {', '.join(cost + said)}")
    return lines


def metric_title(metric: str) -> str:
    score, judge = split_metric(metric)
    return f"{TITLES.get(score, score)} by {short_name(judge)}"


def interval_text(row: Row) -> str:
    """A value and its interval at 95 %, to three digits that count: ``.988 (.979 to .993)``."""
    return shown(interval_of(row))


def shown(interval: Interval) -> str:
    """A value and its interval, to three digits that count."""
    return f"{_short(interval.value)} ({_short(interval.low)} to {_short(interval.high)})"


def _short(value: float) -> str:
    text = f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}" if value else "0"
    return text.replace("0.", ".", 1) if abs(value) < 1 and "e" not in text else text


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: 1 where both put the same things in the same order, NaN where one of them sees no difference."""
    ranks = np.stack([_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)])
    if (ranks.std(axis=1) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, the mean of theirs for equal values."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def agreement_table(rows: Sequence[Row]) -> str:
    """Rank correlations over the rules of one case between all pairs of judges, by accuracy and by distance."""
    table, lines = values_by_rule([row for row in rows if row.variant != REAL]), []
    for score, title in TITLES.items():
        metrics = [metric for metric in judged_metrics(rows) if split_metric(metric)[0] == score]
        for first, second in combinations(metrics, 2):
            both = [(found[first].value, found[second].value) for found in table.values() if {first, second} <= found.keys()]
            if len(both) >= LEAST_RANKED:
                correlation = rank_correlation(*zip(*both, strict=True))
                judges = [short_name(split_metric(metric)[1]) for metric in (first, second)]
                lines.append([title, *judges, f"{correlation:.2f}", str(len(both))])
    return markdown_table(("order of rules by", "judge", "and judge", "rank correlation", "rules"), lines)


def confusion_table(rows: Sequence[Row], most: int, names: Sequence[str] = ()) -> str:
    """The ``most`` frequent mistakes of every rule by every judge that classifies; ``names`` are those of the classes."""

    def name(label: int) -> str:
        return names[label] if label < len(names) else f"class {label}"

    lines = []
    for row in rows:
        score, judge = split_metric(row.metric)
        for asked, found, times in confused(row)[:most] if score == ACCURACY else ():
            lines.append([row.variant, short_name(judge), name(asked), name(found), str(times)])
    return markdown_table(("rule", "judge", "asked for", "taken for", "times"), lines)


def quality_tables(rows: Sequence[Row]) -> str:
    """For a report: every case with its table, the agreement of its judges, and how its rows were made."""
    parts = []
    for (case, dtype), group in by_case(rows).items():
        table = score_table(group)
        if table:
            commands = " ".join(f"`{command}`" for command in dict.fromkeys(row.command for row in group))
            devices = " and ".join(dict.fromkeys(row.device for row in group))
            made = f"{devices}, {dtype}; {commands}; {provenance(group)}"
            parts += [f"**{case}**", table, agreement_table(group), made]
    return "\n\n".join(part for part in parts if part)
