"""``segue reproduce reused``: what directions that are held, extrapolated or calibrated cost, and how far samples then are."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from segue.engine.cli.options import RunOptions, Source
from segue.engine.cli.session import make_plan, open_engine, refuse_prompt_model
from segue.engine.engine import Engine
from segue.engine.rules.presets import parse_rule
from segue.engine.rules.rule_text import rule_text

from ..allocator import DEFAULT
from ..calibration.calibrate import Budget, Calibrator, Judged
from ..calibration.search import Wanted
from ..quality.commands import DTYPE
from ..quality.interval import SPREAD_LEVEL
from ..quality.rows import held_rows
from ..quality.time_limit import OutOfTimeError, TimeLimit
from ..quality.trial import networks_of
from ..rows import Environment, append_rows, check_writable, make_row
from ..runs import command_line
from ..suites import UNFINISHED
from ..tables import GUIDED
from ..telemetry import environment
from ..timing import Statistic, once
from .durations import rows_and_durations, timed
from .inference import show
from .page import check_folder
from .reused_page import COMMAND, ERROR, EXACT, LEAST, SUITE, TITLE, regular, reused_content

REFRESH, ORDERS = 2, (0, 1)


def reproduce_reused(
    source: Source,
    rules: Sequence[str],
    costs: Sequence[float],
    run: RunOptions,
    budget: Budget,
    out: Path,
    minutes: float | None,
    into: Path | None,
    echo: Callable[[str], None] = print,
) -> int:
    """Measure what is missing of ``rules`` within ``minutes``, write the page or print it; returns the exit code.

    The page holds whatever the file has of these networks.  Raises ``ValueError`` before any work.
    """
    limit = TimeLimit(minutes)
    check_writable(out)
    refuse_prompt_model(source, "calibrations are searched on models of classes")
    engine = open_engine(source)
    where = environment(engine.device, command_line(), DEFAULT)
    check_folder(into, where)
    wanted = [Wanted(cost=cost) for cost in costs]
    plans = [make_plan(engine, parse_rule(rule, engine.spec), run) for rule in rules]
    every = [_Measured(engine, Calibrator(engine, plan, budget, echo), wanted, where, out) for plan in plans]
    code, timed_as = 0, f"{COMMAND} {networks_of(engine)}"
    with timed(out, where, timed_as):
        try:
            for measured in every:
                measured.rows(limit)
        except OutOfTimeError as error:
            echo(f"{error}; the same command goes on there")
            code = UNFINISHED
    asked = {key: command for measured in every for key, command in measured.asked(source, run).items()}
    show(reused_content(rows_and_durations(out, timed_as), networks_of(engine), asked), into, COMMAND, TITLE, echo)
    return code


class _Measured:
    """The rows of one rule, variant by variant."""

    def __init__(self, engine: Engine, calibrator: Calibrator, wanted: Sequence[Wanted], where: Environment, out: Path):
        self.calibrator, self.where, self.out = calibrator, where, out
        plan, draw = calibrator.exact, calibrator.budget.judgement
        self.rule = rule_text(plan.rules[0])
        how = f"{plan.schedule.steps} steps, {plan.solver.name}, schedule {plan.schedule.name}"
        self.case = f"{networks_of(engine)}, {self.rule}, {how}, {draw.samples} samples from seed {draw.first_seed}"
        self.orders = {regular(REFRESH, order): order for order in ORDERS}
        self.wanted = {str(each): each for each in wanted if self._possible(each)}

    @property
    def variants(self) -> tuple[str, ...]:
        """What is measured, in the order of the time that it takes."""
        return EXACT, *self.orders, *self.wanted

    def rows(self, limit: TimeLimit) -> None:
        """Add those that the file lacks."""
        held = {(row.case, row.variant) for row in held_rows(self.out).values() if row.suite == SUITE}
        for variant in self.variants:
            if (self.case, variant) not in held:
                with limit.piece(variant, self._work(variant)):
                    self._measure(variant)

    def asked(self, source: Source, run: RunOptions) -> dict[tuple[str, str], str]:
        """The case and the variant of everything that is measured, with the command that does it for a page."""
        dtype = None if source.dtype == DTYPE else source.dtype
        options = {"model": source.model, "weak": source.weak, "dtype": dtype, "steps": run.steps, "solver": run.solver}
        words = ["segue", "reproduce", COMMAND, "-g", self.rule]
        words += [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        words += ["--judge-samples", str(max(LEAST, self.calibrator.budget.judgement.samples)), "--out", str(self.out)]
        costs = {name: ["--cost", f"{each.cost:g}"] for name, each in self.wanted.items()}
        return {(self.case, variant): shlex.join([*words, *costs.get(variant, ())]) for variant in self.variants}

    def _possible(self, wanted: Wanted) -> bool:
        try:
            self.calibrator.check(wanted)
        except ValueError as error:
            self.calibrator.say(f"{self.case}: {error}")
            return False
        return True

    def _work(self, variant: str) -> float:
        """About how many unguided samples take as long."""
        calibrator, judgement = self.calibrator, self.calibrator.budget.judgement
        work = calibrator.exact_work(judgement)
        if variant != EXACT:
            work += judgement.samples * calibrator.exact.cost.relative
        return work + (calibrator.search_work() if variant in self.wanted else 0.0)

    def _measure(self, variant: str) -> None:
        calibrator = self.calibrator
        if variant == EXACT:
            moved = calibrator.unguided_distance()
            self._add(EXACT, [(GUIDED, "x", once(calibrator.exact.cost.relative)), (ERROR, "relative", moved)], "")
        elif variant in self.wanted:
            self._judged(variant, calibrator.judged(calibrator.placements.rule(calibrator.best(self.wanted[variant]))))
        else:
            self._judged(variant, calibrator.judged(calibrator.exact.rules[0].reused(REFRESH, order=self.orders[variant])))

    def _judged(self, variant: str, judged: Judged) -> None:
        found = judged.interval(SPREAD_LEVEL)
        error = Statistic(found.value, found.low, found.high, self.calibrator.budget.judgement.samples)
        self._add(variant, [(GUIDED, "x", once(judged.cost)), (ERROR, "relative", error)], rule_text(judged.rule))

    def _add(self, variant: str, measured: Sequence[tuple[str, str, Statistic]], note: str) -> None:
        dtype = str(self.calibrator.engine.dtype).removeprefix("torch.")
        rows = [
            make_row(self.where, SUITE, self.case, variant, metric, unit, statistic, dtype, note=note)
            for metric, unit, statistic in measured
        ]
        append_rows(self.out, rows)
        for row in rows:
            self.calibrator.say(str(row))
