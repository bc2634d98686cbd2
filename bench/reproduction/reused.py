"""``segue reproduce reused``: what directions that are held, extrapolated or calibrated cost, and how far samples then are."""

from collections.abc import Callable, Sequence
from pathlib import Path

from segue.engine.cli.options import RunOptions, Source
from segue.engine.cli.session import make_plan, open_engine
from segue.engine.rules.presets import parse_rule
from segue.engine.rules.rule_text import rule_text

from ..allocator import DEFAULT
from ..calibration.calibrate import Budget, Calibrator, Judged
from ..calibration.finished import Draw
from ..calibration.search import Wanted
from ..quality.interval import SPREAD_LEVEL
from ..quality.rows import held_rows
from ..quality.time_limit import OutOfTimeError, TimeLimit
from ..quality.trial import networks_of
from ..rows import Row, append_rows, check_writable, make_row
from ..runs import command_line
from ..suites import UNFINISHED
from ..tables import GUIDED
from ..telemetry import environment
from ..timing import Statistic, once
from .durations import rows_and_durations, timed
from .inference import show
from .page import check_folder
from .reused_page import COMMAND, ERROR, EXACT, SUITE, TITLE, regular, reused_content

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

    Raises ``ValueError`` before any work.
    """
    limit = TimeLimit(minutes)
    check_writable(out)
    engine = open_engine(source)
    where = environment(engine.device, command_line(), DEFAULT)
    check_folder(into, where)
    wanted = [Wanted(cost=cost) for cost in costs]
    plans = [make_plan(engine, parse_rule(rule, engine.spec), run) for rule in rules]
    calibrators = [Calibrator(engine, plan, budget, echo) for plan in plans]
    code, timed_as = 0, f"{COMMAND} {networks_of(engine)}"
    with timed(out, where, timed_as):
        for calibrator in calibrators:
            measure = _Measured(calibrator, _case(engine, calibrator, budget.judgement), where, out)
            try:
                measure.rows(wanted, limit)
            except OutOfTimeError as error:
                echo(f"{error}; the same command goes on there")
                code = UNFINISHED
                break
    cases = [_case(engine, calibrator, budget.judgement) for calibrator in calibrators]
    show(reused_content(rows_and_durations(out, timed_as), cases), into, COMMAND, TITLE, echo)
    return code


def _case(engine, calibrator: Calibrator, draw: Draw) -> str:
    """What is measured: the networks, the rule, the run, the samples."""
    plan = calibrator.exact
    run = f"{plan.schedule.steps} steps, {plan.solver.name}, schedule {plan.schedule.name}"
    samples = f"{draw.samples} samples from seed {draw.first_seed}"
    return f"{networks_of(engine)}, {rule_text(plan.rules[0])}, {run}, {samples}"


class _Measured:
    """The rows of one rule, variant by variant."""

    def __init__(self, calibrator: Calibrator, case: str, where, out: Path):
        self.calibrator, self.case, self.where, self.out = calibrator, case, where, out

    def rows(self, wanted: Sequence[Wanted], limit: TimeLimit) -> None:
        """Add those that the file lacks; those that cost least time first."""
        exact, one = self.calibrator.exact.rules[0], 1.0
        if self._lacks(EXACT):
            limit.check(EXACT, one)
            moved = self.calibrator.unguided_distance()
            self._add(EXACT, [(GUIDED, "x", once(self.calibrator.exact.cost.relative)), (ERROR, "relative", moved)], "")
        for order in ORDERS:
            if self._lacks(regular(REFRESH, order)):
                limit.check(regular(REFRESH, order), one)
                self._judged(regular(REFRESH, order), self.calibrator.judged(exact.reused(REFRESH, order=order)))
        for each in wanted:
            if self._lacks(str(each)) and self._possible(each):
                limit.check(str(each), one)
                placement = self.calibrator.best(each)
                self._judged(str(each), self.calibrator.judged(self.calibrator.placements.rule(placement)))

    def _possible(self, wanted: Wanted) -> bool:
        try:
            self.calibrator.check(wanted)
        except ValueError as error:
            self.calibrator.say(f"{self.case}: {error}")
            return False
        return True

    def _lacks(self, variant: str) -> bool:
        return not any(row.suite == SUITE and (row.case, row.variant) == (self.case, variant) for row in self._held())

    def _held(self) -> list[Row]:
        return list(held_rows(self.out).values())

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
