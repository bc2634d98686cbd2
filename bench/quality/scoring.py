"""Scores of guidance rules on a model, as result rows: a rule that a file holds is not drawn again.

Rows of the suite ``quality`` go into one file, ``out/quality.jsonl`` unless another is named.  The variant is the rule, the
metric a score by a judge; its spread is an interval of confidence, see :mod:`.interval`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from segue.engine.engine import Engine
from segue.engine.images import check_pixels
from segue.engine.rules.presets import ParsedRule, parse_rule
from segue.engine.running.progress import progress_bar

from ..rows import Environment, Row, append_rows, check_writable
from ..scores.effective_scale import effective_scales
from ..scores.intervals import SETS, interval_by_sets
from ..scores.judge import Judge
from ..scores.units import EFFECTIVE, UNITS
from ..tables import GUIDED
from ..timing import once
from .interval import SPREAD_LEVEL
from .judges import check_judge
from .real_samples import RealSamples
from .rows import REAL, Key, RowForm, check_names, chosen, held_rows, key_of
from .tables import summary
from .time_limit import TimeLimit
from .trial import Trial

RESULTS = Path("out/quality.jsonl")
EVALUATIONS, FLOPS = "evaluations of a sample", "FLOPs of a sample"
EFFECTIVE_SAMPLES = 3 * SETS


@dataclass(frozen=True)
class Scorer:
    """Scores rules by ``judges`` beside ``real`` samples and adds the rows to ``path``, rule by rule.

    ``effective``: also the mean effective scale over the calls of a few samples, which costs as much as drawing some 60 more.
    ``beside`` is the network whose scale that is, where guidance is in the weights of this one.  ``limit`` raises
    :class:`.time_limit.OutOfTimeError` before a rule that would not end in time.  Raises ``ValueError`` for judges that do not
    fit the model, for latents without a VAE, and for fewer real samples than are drawn.
    """

    engine: Engine
    judges: tuple[Judge, ...]
    real: RealSamples
    trial: Trial
    environment: Environment
    path: Path = RESULTS
    effective: bool = False
    limit: TimeLimit = field(default_factory=TimeLimit)
    echo: Callable[[str], None] = print
    beside: Engine | None = None

    def __post_init__(self):
        check_writable(self.path)
        check_names(self.judges)
        spec, decoder = self.engine.spec, self.engine.decoder
        if decoder is None:
            check_pixels(spec.channels)
        factor = 1 if decoder is None else decoder.factor
        size = (3, factor * spec.height, factor * spec.width)
        self.real.check(self.trial.samples, size)
        for judge in self.judges:
            classes = check_judge(judge, size)
            if classes not in (None, spec.num_classes):
                raise ValueError(f"{judge.name} tells {classes} classes apart, and {spec.name} has {spec.num_classes}")

    @cached_property
    def form(self) -> RowForm:
        """What the rows have in common."""
        case, dtype = self.trial.case(self.engine, self.real.name), str(self.engine.dtype).removeprefix("torch.")
        return RowForm(self.environment, case, dtype, self.engine.spec.parents)

    def score(self, rules: Sequence[str]) -> list[Row]:
        """The rows of ``rules``, old and new.  Raises ``ValueError`` for a rule that is none before any work.

        A judge whose rows of a rule are in the file is not asked again; a rule of which nothing is missing is not drawn.
        """
        parsed = self._parsed(rules)
        plans = [self.trial.plan(self.engine, rule) for rule in parsed]
        for note in dict.fromkeys(note for rule in parsed for note in rule.notes):
            self.echo(f"note: {note}")
        kept = held_rows(self.path)
        for rule, plan in zip(parsed, plans, strict=True):
            judges = [judge for judge in self.judges if not kept.keys() >= set(self.form.keys(rule.text, judge))]
            rows = [row for row in self._cost(rule, plan.cost) if key_of(row) not in kept]
            wants_scale = self.effective and self.form.key(rule.text, EFFECTIVE) not in kept
            if judges or wants_scale:
                with self.limit.piece(rule.text, plan.cost.evaluations * self.trial.samples * bool(judges)):
                    rows += self._effective_scale(rule) if wants_scale else []
                    rows += self._judged(rule, judges, plan.calls) if judges else []
            append_rows(self.path, rows)
            kept |= {key_of(row): row for row in rows}
            for line in summary(rows):
                self.echo(line)
        return self.held(rules)

    def score_real(self) -> list[Row]:
        """The rows of real samples, as many as a rule draws and of the same classes, beside the others; none of a fixed set."""
        if self.real.fresh is None:
            return []
        kept = held_rows(self.path)
        judges = [judge for judge in self.judges if not kept.keys() >= set(self.form.keys(REAL, judge))]
        if judges:
            labels = torch.tensor(self.trial.labels(self.engine.spec.num_classes))
            rows = self._rows_of(REAL, judges, self.real.fresh(labels), labels)
            append_rows(self.path, rows)
            for line in summary(rows):
                self.echo(line)
        return chosen(held_rows(self.path), [key for judge in self.judges for key in self.form.keys(REAL, judge)])

    def held(self, rules: Sequence[str]) -> list[Row]:
        """The rows of ``rules`` that the file holds."""
        return chosen(held_rows(self.path), [key for rule in self._parsed(rules) for key in self._keys(rule)])

    def _parsed(self, rules: Sequence[str]) -> list[ParsedRule]:
        return [parse_rule(text, self.engine.spec) for text in rules]

    def _keys(self, rule: ParsedRule) -> list[Key]:
        metrics = (GUIDED, EVALUATIONS, FLOPS, *((EFFECTIVE,) if self.effective else ()))
        scores = [key for judge in self.judges for key in self.form.keys(rule.text, judge)]
        return [self.form.key(rule.text, metric) for metric in metrics] + scores

    def _cost(self, rule: ParsedRule, cost) -> list[Row]:
        counted = ((GUIDED, "x", cost.relative), (EVALUATIONS, "evaluations", cost.evaluations), (FLOPS, "FLOP", cost.flops))
        return [self.form.row(rule.text, metric, unit, once(float(value))) for metric, unit, value in counted]

    def _effective_scale(self, rule: ParsedRule) -> list[Row]:
        """Its mean over the calls where there is one, of samples of classes spread over all."""
        count = self.engine.spec.num_classes
        labels = [index * count // EFFECTIVE_SAMPLES % count for index in range(EFFECTIVE_SAMPLES)]
        seeds = [self.trial.first_seed + index for index in range(EFFECTIVE_SAMPLES)]
        options = {"steps": self.trial.steps, "seeds": seeds, "beside": self.beside}
        _, scales = effective_scales(self.engine, rule.guidance, labels, **options)
        means = scales.nanmean(dim=0)  # [B]
        interval = interval_by_sets(lambda part: float(part.mean()), means, level=SPREAD_LEVEL)
        return [self.form.interval_row(rule.text, EFFECTIVE, UNITS[EFFECTIVE], interval, EFFECTIVE_SAMPLES)]

    def _judged(self, rule: ParsedRule, judges: Sequence[Judge], calls: int) -> list[Row]:
        """The rows of the samples of a rule, all of the same samples."""
        with progress_bar(rule.text, calls * self.trial.batches) as advance:
            drawn = list(self.trial.draw(self.engine, rule, advance))
        pictures, labels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return self._rows_of(rule.text, judges, pictures, labels)

    def _rows_of(self, variant: str, judges: Sequence[Judge], pictures: Tensor, labels: Tensor) -> list[Row]:
        rows = []
        for judge in judges:
            rows += self.form.judged(variant, judge, judge.view(pictures), labels, self.real.features(judge))
        return rows
