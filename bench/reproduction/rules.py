"""``segue reproduce rules``: every named rule on one model, the main ones over their strength, with a picture of each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine
from segue.engine.engine import Engine
from segue.engine.images import save_png

from ..allocator import DEFAULT
from ..pictures.demo import Demo, default_classes
from ..pictures.demo_command import scored_leaves
from ..pictures.measured import Measured
from ..quality.real_samples import RealSamples
from ..quality.score_command import default_batch, draws_leaves, equal_cfg
from ..quality.scoring import Scorer
from ..quality.time_limit import OutOfTimeError, TimeLimit
from ..quality.trial import Trial, networks_of
from ..quality.tuning import UNGUIDED
from ..rows import check_writable, read_rows
from ..runs import command_line
from ..scores.judge import Judge
from ..suites import UNFINISHED
from ..telemetry import environment
from .durations import rows_and_durations, timed
from .inference import show
from .page import check_folder
from .rule_sweep import FACTORS, all_names, swept_rules
from .rule_times import RuleTimes
from .rules_page import COMMAND, TITLE, best_texts, rules_content

TIMED_BATCH = 8


@dataclass(frozen=True)
class Sweep:
    """Which rules are drawn, at which factors of their numbers; ``beside``: and CFG at the effective scale of each."""

    names: Sequence[str] | None
    factors: Sequence[float]
    beside: bool = False

    def __post_init__(self):
        for factor in self.factors:
            if not 0 < factor < math.inf:
                raise ValueError(f"numbers are multiplied with a positive factor, got {factor:g}")


def reproduce_rules(
    source: Source,
    sweep: Sweep,
    drawing: dict,
    judged: Callable[[Engine], tuple[tuple[Judge, ...], RealSamples]],
    out: Path,
    minutes: float | None,
    into: Path | None,
    page: str,
    command: str,
    echo: Callable[[str], None] = print,
) -> int:
    """Score what is missing within ``minutes``, write ``into/PAGE.md`` or print it; returns the exit code.

    ``drawing`` are fields of a :class:`Trial`, ``command`` is what scores one more rule.  All rules are drawn at their own
    numbers before any is drawn at others; the page is of all rules, also where only some are drawn.  Raises ``ValueError``
    before any work.
    """
    limit = TimeLimit(minutes)
    check_writable(out)
    engine = open_engine(source)
    where = environment(engine.device, command_line(), DEFAULT)
    check_folder(into, where)
    trial = Trial(**{"batch": default_batch(engine)} | drawing)
    judges, real = judged(engine)
    everything = all_names(engine, echo if sweep.names is None else lambda reason: None)
    rules = swept_rules(engine, everything if sweep.names is None else [UNGUIDED, *sweep.names], sweep.factors)
    shown = swept_rules(engine, [*everything, *(rule.name for rule in rules)], [*FACTORS, *sweep.factors])
    scorer = Scorer(engine, judges, real, trial, where, out, True, limit, echo)
    times = RuleTimes(engine, trial.steps, trial.solver, min(TIMED_BATCH, trial.batch), where, out)
    timed_as = f"{COMMAND} {networks_of(engine)}"
    code = 0
    with timed(out, where, timed_as):
        scorer.score_real()
        try:
            scorer.score([rule.own for rule in rules])
            times.measure([rule.own for rule in rules], limit)
            for factor in sweep.factors:
                scorer.score([rule.texts[factor] for rule in rules if factor in rule.texts])
            if sweep.beside:
                texts = [text for rule in rules for text in rule.texts.values()]
                best = best_texts(scorer.held(texts), rules)
                best = best or [rule.own for rule in rules]  # of few samples the page shows none
                scorer.score(equal_cfg(scorer.held(best)))
        except OutOfTimeError as error:
            echo(f"{error}; the same command goes on there")
            code = UNFINISHED
    own = {scorer.form.case: scorer.form.dtype, times.case: scorer.form.dtype, timed_as: "none"}
    rows = [row for row in rows_and_durations(out, timed_as) if own.get(row.case) == row.dtype]
    picture = None if into is None else draw_rules(into / f"{page}.png", engine, scorer, best_texts(rows, shown), echo)
    show(rules_content(rows, shown, scorer.form.case, command, picture), into, page, TITLE, echo)
    return code


def draw_rules(path: Path, engine: Engine, scorer: Scorer, texts: Sequence[str], say: Callable[[str], None]) -> str | None:
    """A row of pictures for each of ``texts`` on the same noise, as a PNG at ``path``; its name.

    None where nothing was scored, and, as is said, where no judge tells the classes of the herbarium apart.
    """
    judge = next((judge for judge in scorer.judges if judge.logits is not None), None)
    if not texts:
        return None
    if judge is None or not draws_leaves(engine):
        say("no picture: it shows leaves, and what a judge who classifies takes them for")
        return None
    rows = [row for row in read_rows(scorer.path) if (row.case, row.dtype) == (scorer.form.case, scorer.form.dtype)]
    measured = Measured.of(rows, networks_of(engine), judge.name, scorer.path)
    classes = default_classes(engine.spec.parents, each=1)  # as there are rows by the dozen
    demo = Demo(engine, judge, scored_leaves, scorer.trial, classes, measured)
    lines = [demo.real_line(), *map(demo.line, texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(demo.sheet(lines), path, demo.title(), {"rules": list(texts), "labels": list(demo.labels)}, smallest=True)
    return path.name
