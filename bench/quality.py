"""Quality of guidance rules on a model, as result rows: a rule that a file holds is not drawn again.

Rows of the suite ``quality`` go into one file, ``bench/results/quality.jsonl``.  The variant is the rule, the metric a score by
a judge; its spread is an interval of confidence, see :mod:`.quality_interval`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from segue.engine.engine import Engine
from segue.engine.records.provenance import fingerprint
from segue.engine.rules.presets import ParsedRule, parse_rule

from .quality_interval import SPREAD_LEVEL, SUITE
from .rows import Environment, Row, append_rows, check_writable, make_row, read_rows
from .scores.intervals import SETS
from .scores.judge import Judge
from .scores.units import UNITS
from .tables import GUIDED
from .timing import Statistic, once

RESULTS = Path("bench/results/quality.jsonl")


@dataclass(frozen=True)
class Trial:
    """What is drawn for a score: ``samples`` of all classes in turn, from the seeds that begin at ``first_seed``.

    Seeds of a search and of its judgement must be apart.
    """

    samples: int
    steps: int = 28
    solver: str = "euler"
    first_seed: int = 0
    batch: int = 32

    def __post_init__(self):
        for name, least in (("samples", 2 * SETS), ("steps", 1), ("batch", 1), ("first_seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")

    def case(self, engine: Engine) -> str:
        """What rows must share to be compared: the networks, and how their samples are drawn."""
        networks = f"{engine.spec.name} {fingerprint(engine.models)}"
        return f"{networks}, {self.samples} samples from seed {self.first_seed}, {self.steps} steps, {self.solver}"

    def draw(self, engine: Engine, rule: ParsedRule) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of pictures [B, C, H, W] in [-1, 1] with labels [B]; sample ``i`` is of class ``i`` modulo their number."""
        for first in range(0, self.samples, self.batch):
            indices = range(first, min(first + self.batch, self.samples))
            labels = [index % engine.spec.num_classes for index in indices]
            seeds = [self.first_seed + index for index in indices]
            run = engine.sample(labels, rule.guidance, steps=self.steps, seeds=seeds, solver=self.solver)
            yield run.latents.clamp(-1, 1).cpu(), torch.tensor(labels)


def score_rules(
    engine: Engine,
    rules: Sequence[str],
    judges: Mapping[Judge, Tensor],
    trial: Trial,
    environment: Environment,
    path: Path = RESULTS,
    echo: Callable[[str], None] = print,
) -> list[Row]:
    """Score every rule by every judge and add the rows to ``path``, rule by rule; returns those of ``rules``, old and new.

    ``judges`` maps each judge to the features [M, F] of real samples by it, as many as there are samples at least.  A judge
    whose rows of a rule are in the file is not asked again, and a rule of which nothing is missing is not drawn.
    """
    parsed = [parse_rule(text, engine.spec) for text in rules]  # all bad rules raise here
    check_writable(path)
    if len({judge.name for judge in judges}) < len(judges):
        raise ValueError(f"judges need names of their own, got {', '.join(judge.name for judge in judges)}")
    form = _RowForm(environment, trial.case(engine), str(engine.dtype).removeprefix("torch."), engine.spec.parents)
    kept = {row.key: row for row in read_rows(path)} if path.exists() else {}
    for rule in parsed:
        missing = {judge: real for judge, real in judges.items() if not kept.keys() >= set(form.keys(rule, judge))}
        rows = _scored(engine, rule, missing, trial, form) if missing else []
        append_rows(path, rows)
        kept |= {row.key: row for row in rows}
        for row in rows:
            echo(str(row))
    wanted = dict.fromkeys(key for rule in parsed for judge in judges for key in form.keys(rule, judge))
    return [kept[key] for key in wanted]


@dataclass(frozen=True)
class _RowForm:
    """What the rows of one trial have in common."""

    environment: Environment
    case: str
    dtype: str
    parents: tuple[int, ...]

    def keys(self, rule: ParsedRule, judge: Judge) -> list[tuple]:
        """Of the rows of a rule by a judge: what the rule costs, then every score."""
        metrics = (GUIDED, *(_by(name, judge) for name in judge.metrics(self.parents)))
        return [(SUITE, self.case, rule.text, metric, self.dtype, self.environment.device) for metric in metrics]

    def row(self, rule: ParsedRule, metric: str, unit: str, statistic: Statistic, note: str = "") -> Row:
        return make_row(self.environment, SUITE, self.case, rule.text, metric, unit, statistic, self.dtype, note=note)


def _by(metric: str, judge: Judge) -> str:
    return f"{metric} by {judge.name}"


def _scored(engine: Engine, rule: ParsedRule, judges: Mapping[Judge, Tensor], trial: Trial, form: _RowForm) -> list[Row]:
    """The rows of one rule: what it costs, and the scores of ``judges``, all of the same samples."""
    pictures, labels = (torch.cat(parts) for parts in zip(*trial.draw(engine, rule), strict=True))
    plan = engine.plan(rule.guidance, trial.steps, solver=trial.solver)
    rows = [form.row(rule, GUIDED, "x", once(plan.cost.relative))]
    for judge, real in judges.items():
        note = f"against {len(real)} real samples"
        for name, interval in judge.scores(pictures, labels, real, form.parents, SPREAD_LEVEL).items():
            statistic = Statistic(interval.value, interval.low, interval.high, trial.samples)
            rows.append(form.row(rule, _by(name, judge), UNITS[name], statistic, note))
    return rows
