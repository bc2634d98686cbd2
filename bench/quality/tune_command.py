"""``segue tune-scales``: from options to numbers for the rules of a model, and what judges say of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine
from segue.engine.rules.preset_numbers import DEFAULTS, preset_name
from segue.engine.rules.presets import parse_rule

from ..allocator import DEFAULT
from ..rows import Row
from ..runs import command_line
from ..scores.judge import Judge
from ..suites import UNFINISHED
from ..tables import markdown_table
from ..telemetry import environment
from .judges import named_judge
from .score_command import Panel, Report, default_batch
from .scoring import Scorer
from .time_limit import OutOfTimeError, TimeLimit
from .trial import Trial
from .tuning import UNGUIDED, Tunable, Verdict, tune, verdicts


@dataclass(frozen=True)
class Budget:
    """What is drawn in the search and in the judgement that follows: fields of :class:`Trial`."""

    search: dict
    judgement: dict

    def trials(self, batch: int) -> tuple[Trial, Trial]:
        """Both; raises ``ValueError`` where they have seeds in common."""
        search, judgement = (Trial(**{"batch": batch} | drawn) for drawn in (self.search, self.judgement))
        common = range(max(search.first_seed, judgement.first_seed), min(search.seeds.stop, judgement.seeds.stop))
        if common:
            raise ValueError(
                f"what is searched on must not judge: seeds {common.start} to {common.stop - 1} are in both, "
                f"{search.samples} from {search.first_seed} and {judgement.samples} from {judgement.first_seed}"
            )
        return search, judgement


def tune_model(
    source: Source,
    rules: Sequence[str] | None,
    extractor: str,
    panel: Panel,
    budget: Budget,
    out: Path,
    minutes: float | None,
    report: Report,
) -> int:
    """Search the numbers of ``rules`` with ``extractor``, judge the best by the panel; returns the exit code."""
    limit = TimeLimit(minutes)
    engine = open_engine(source)
    search, judgement = budget.trials(default_batch(engine))
    texts = list(rules or DEFAULTS.get(preset_name(engine.spec), {}))
    tunables = [Tunable.of(text, engine.spec) for text in texts]
    if not tunables:
        raise ValueError(f"{engine.spec.name} has no numbers for any rule to begin with: name rules by -g")
    chooser, judges = named_judge(extractor, engine.device), panel.named(engine.device, engine.spec)
    if chooser.name in {judge.name for judge in judges}:
        raise ValueError(f"{extractor} chooses the numbers, and they look best to it: name another --judge")
    real, where = panel.samples(engine.spec), environment(engine.device, command_line(), DEFAULT)
    searching = Scorer(engine, (chooser,), real, search, where, out, False, limit, report.say)
    judging = Scorer(engine, judges, real, judgement, where, out, False, limit, report.say)
    chosen: dict[str, str] = {}
    code = 0
    try:
        for tunable in tunables:
            report.say(f"searching {tunable.rule.name} over {', '.join(tunable.options)}")
            chosen[tunable.rule.name] = tune(searching, tunable)
        judging.score([UNGUIDED, *chosen.values()])
    except OutOfTimeError as error:
        report.say(f"{error}; the same command goes on there")
        code = UNFINISHED
    tuned = Tuned(chosen, judging.held([UNGUIDED, *chosen.values()]), judges)
    if report.json:
        print(json.dumps(tuned.as_dict()))
    else:
        report.show(tuned.rows)
        print(f"\n{tuned.verdict_table()}\n\n{tuned.numbers_text()}")
    return code


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
                lines.append([self.chosen[name], verdict.judge, "yes" if verdict.better else "**no**", verdict.text])
        return markdown_table(("rule", "judge", "beats unguided", "how"), lines)

    def numbers_text(self) -> str:
        """The numbers as engine/rules/preset_numbers.py holds them."""
        parts = {name: dict(parse_rule(text).parts[0].options) for name, text in self.chosen.items()}
        return "\n".join(f'"{name}": {json.dumps(numbers, default=str)},' for name, numbers in parts.items())

    def as_dict(self) -> dict:
        """For machines."""
        found = {name: [asdict(verdict) for verdict in own] for name, own in self.verdicts().items()}
        return {"numbers": self.chosen, "verdicts": found, "rows": [asdict(row) for row in self.rows]}
