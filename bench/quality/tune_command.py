"""``segue tune-scales``: from options to numbers for the rules of a model, and what judges say of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine
from segue.engine.engine import Engine
from segue.engine.rules.presets import default_rules, parse_rule
from segue.engine.rules.tuned_numbers import numbers_file, set_aside, tuned_rules, write_numbers
from segue.models.bundled import CLASSIFIERS
from segue.models.spec import ModelSpec

from ..allocator import DEFAULT
from ..rows import Row
from ..runs import command_line
from ..scores.judge import Judge
from ..suites import UNFINISHED
from ..tables import markdown_table
from ..telemetry import environment
from .judges import named_judge
from .score_command import WITHOUT_WEIGHTS, Panel, Report, default_batch, default_texts, draws_leaves
from .scoring import Scorer
from .time_limit import OutOfTimeError, TimeLimit
from .trial import Trial
from .tuning import UNGUIDED, Tunable, Verdict, tune, verdicts

CHOOSER = "herbarium-classifier"  # of leaves


@dataclass(frozen=True)
class Budget:
    """What is drawn in the search and in the judgement that follows: fields of :class:`Trial`."""

    search: dict
    judgement: dict

    def trials(self, batch: int) -> tuple[Trial, Trial]:
        """Both; raises ``ValueError`` where they have seeds in common."""
        search, judgement = (Trial(**{"batch": batch} | drawn) for drawn in (self.search, self.judgement))
        search.check_apart(judgement)
        return search, judgement


@dataclass(frozen=True)
class Roles:
    """Who chooses and who judges, beside which real samples; None is the default of the model."""

    extractor: str | None
    panel: Panel

    def named(self, engine: Engine) -> tuple[Judge, tuple[Judge, ...]]:
        """The one who chooses, and those who judge; raises ``ValueError`` where one is both."""
        known = draws_leaves(engine)
        extractor = self.extractor or (CHOOSER if known else WITHOUT_WEIGHTS[0])
        others = (*CLASSIFIERS, WITHOUT_WEIGHTS[0]) if known else WITHOUT_WEIGHTS
        judges = self.panel.judges or [name for name in others if name != extractor]
        chooser, named = named_judge(extractor, engine.device), replace(self.panel, judges=judges).named(engine.device, known)
        if chooser.name in {judge.name for judge in named}:
            raise ValueError(f"{extractor} chooses the numbers, and they look best to it: name another --judge")
        return chooser, named


def tune_model(
    source: Source,
    rules: Sequence[str] | None,
    roles: Roles,
    budget: Budget,
    out: Path,
    minutes: float | None,
    report: Report,
    write: bool = False,
) -> int:
    """Search the numbers of ``rules`` with one extractor, judge the best by others; returns the exit code.

    ``write``: what was chosen becomes the numbers of a bundled model, once it is judged.
    """
    limit = TimeLimit(minutes)
    if write:
        numbers_file(source.name)  # another model is refused
    engine = open_engine(source)
    try:
        tuned_rules(engine.spec.name)
    except ValueError as error:  # of weights before these
        report.say(f"{error}; the search begins without it")
        set_aside(engine.spec.name)
    search, judgement = budget.trials(default_batch(engine))
    tunables = tunable_rules(rules or default_texts(engine, report.say), engine.spec)
    (chooser, judges), real = roles.named(engine), roles.panel.samples(engine)
    common = {"real": real, "environment": environment(engine.device, command_line(), DEFAULT)}
    common |= {"path": out, "limit": limit, "echo": report.say}
    searching = Scorer(engine, (chooser,), trial=search, **common)
    judging = Scorer(engine, judges, trial=judgement, **common)
    tuned, code = run_search(searching, judging, tunables)
    tuned.show(report)
    report.say(f"\nrows in {out}")
    if write and not code:
        before = {name: parse_rule(name, source.name).text for name in default_rules(source.name)}
        report.say(f"wrote {write_numbers(source.name, before | tuned.chosen, command_line())}")
    return code


def tunable_rules(texts: Sequence[str], spec: ModelSpec) -> list[Tunable]:
    """Those of texts; raises ``ValueError`` for none, and for two of one name."""
    tunables = [Tunable.of(text, spec) for text in texts]
    if not tunables:
        raise ValueError(f"{spec.name} has no numbers for any rule to begin with: name rules by -g")
    names = [tunable.rule.name for tunable in tunables]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{twice} can have one set of numbers, and is given twice")
    return tunables


def run_search(searching: Scorer, judging: Scorer, tunables: Sequence[Tunable]) -> "tuple[Tuned, int]":
    """Search rule by rule, then judge all that were chosen; what there was time for, and the exit code."""
    chosen: dict[str, str] = {}
    code = 0
    try:
        for tunable in tunables:
            searching.echo(f"searching {tunable.rule.name} over {', '.join(tunable.options)}")
            chosen[tunable.rule.name] = tune(searching, tunable)
        judging.score([UNGUIDED, *chosen.values()])
    except OutOfTimeError as error:
        searching.echo(f"{error}; the same command goes on there")
        code = UNFINISHED
    return Tuned(chosen, judging.held([UNGUIDED, *chosen.values()]), judging.judges), code


@dataclass(frozen=True)
class Tuned:
    """The text of every rule by its name, the rows that judge them, and the judges; a rule may not be judged yet."""

    chosen: dict[str, str]
    rows: Sequence[Row]
    judges: Sequence[Judge]

    def verdicts(self) -> dict[str, list[Verdict]]:
        """By the name of every rule that is judged."""
        judged = {row.variant for row in self.rows}
        names = {name: text for name, text in self.chosen.items() if {text, UNGUIDED} <= judged}
        return {name: verdicts(self.rows, text, self.judges) for name, text in names.items()}

    def verdict_table(self) -> str:
        """A line for every rule and judge; a rule that does not beat unguided samples says so."""
        lines = []
        for name, found in self.verdicts().items():
            for verdict in found:
                lines.append([self.chosen[name], verdict.judge, verdict.outcome, verdict.text])
        return markdown_table(("rule", "judge", "beats unguided", "how"), lines)

    def numbers_text(self) -> str:
        """The rules with their numbers, as the file of a bundled model holds them."""
        return json.dumps(self.chosen, indent=1)

    def show(self, report: Report) -> None:
        """Print the tables, or all of it as JSON."""
        if report.json:
            print(json.dumps(self.as_dict()))
            return
        report.show(self.rows)
        print("\n" + "\n\n".join(text for text in (self.verdict_table(), self.numbers_text()) if text))

    def as_dict(self) -> dict:
        """For machines."""
        found = {name: [asdict(verdict) for verdict in own] for name, own in self.verdicts().items()}
        return {"numbers": self.chosen, "verdicts": found, "rows": [asdict(row) for row in self.rows]}
