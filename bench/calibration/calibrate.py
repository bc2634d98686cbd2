"""``segue calibrate``: from a rule and a wanted cost or error to a file that says which calls evaluate its branches."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from segue.engine.cli.options import RunOptions, Source
from segue.engine.cli.session import make_plan, open_engine, refuse_prompt_model
from segue.engine.engine import Engine
from segue.engine.files import check_writable, refuse_existing, whole_file
from segue.engine.planning.plan import Plan
from segue.engine.rules.calibration import Calibration
from segue.engine.rules.guidance import Guidance
from segue.engine.rules.presets import parse_rule
from segue.engine.rules.rule_text import rule_text
from segue.engine.running.progress import progress_bar
from segue.models.fingerprint import rounded_fingerprint

from ..quality.draw import Draw
from ..runs import command_line
from ..scores.intervals import LEVEL, Interval
from ..timing import Statistic
from .finished import Finished, distances, error, error_interval, run_of
from .left_out import measure_left_out
from .placement import Placement, Placements
from .search import Search, Wanted

MEASURED = 2  # each call is left out on one in so many of the samples that placements are tried on
FIRST_TRIED = 5  # placements that the search found; those after them are neighbours of the best


@dataclass(frozen=True)
class Budget:
    """The samples that a search goes by and those that judge it, and how many placements are drawn."""

    search: Draw
    judgement: Draw
    tries: int = 12

    def __post_init__(self):
        if not isinstance(self.tries, int) or self.tries < 1:
            raise ValueError(f"tries must be a whole number of at least 1, got {self.tries!r}")
        self.search.check_apart(self.judgement)

    @property
    def measured(self) -> Draw:
        """The samples on which each call is left out."""
        return replace(self.search, samples=max(Draw.least, self.search.samples // MEASURED))


@dataclass(frozen=True, eq=False)
class Judged:
    """A placement beside the exact rule: what it costs, and its error on held-out samples."""

    rule: Guidance
    cost: float
    moved: Tensor  # distances of its samples and of unguided ones from the exact ones, [samples] each
    unguided: Tensor

    def interval(self, level: float = LEVEL) -> Interval:
        """The error with its interval."""
        return error_interval(self.moved, self.unguided, level)


class Calibrator:
    """Searches and judges placements of one exact rule on one run; what was measured once serves all that is wanted."""

    def __init__(self, engine: Engine, exact: Plan, budget: Budget, say: Callable[[str], None]):
        self.engine, self.exact, self.budget, self.say = engine, exact, budget, say
        self.placements = Placements(exact)
        self._search: Search | None = None
        self._exact: dict[Draw, tuple[Tensor, Tensor]] = {}

    def check(self, wanted: Wanted) -> None:
        """Raise ``ValueError`` for a cost that no placement has, or that the exact rule has too."""
        count = len(self.placements.weighed)
        least = self.placements.cost(self.placements.fewest((0,) * count))
        if wanted.cost is not None and not least <= wanted.cost < self.exact.cost.relative:
            raise ValueError(
                f"the wanted cost must lie between {least:.3f}, that of the fewest calls, and {self.exact.cost.relative:.3f}, "
                f"that of the exact rule, got {wanted.cost:g}"
            )

    def search(self) -> Search:
        """Predictions by what leaving out each call does, measured when they are first asked for."""
        if self._search is None:
            runs = len(self.placements.changes) * self.budget.measured.batches
            with progress_bar("calls left out", runs) as advance:
                left_out = measure_left_out(self.engine, self.placements, self.budget.measured, advance)
            known: dict[Placement, float] = {}

            def predicted(placement: Placement) -> float:
                if placement not in known:
                    known[placement] = left_out.predicted(placement)
                return known[placement]

            self._search = Search(self.placements, predicted)
        return self._search

    def best(self, wanted: Wanted) -> Placement:
        """The placement of least error on the samples of the search; for a wanted error the cheapest that has it.

        For an error that none of those tried has, the search goes on for smaller ones, until nothing is left out.
        """
        self.check(wanted)
        search, aim = self.search(), wanted
        tried: dict[Placement, float] = {}
        while len(tried) < self.budget.tries:
            found = search.best(aim)[: min(FIRST_TRIED, self.budget.tries - len(tried))]
            for placement in found:
                self._try(placement, tried)
            least = min(tried.values())
            if wanted.error is None or least <= wanted.error or found[0].calls == self.placements.weighed:
                break
            aim = Wanted(error=aim.error * min(0.9, wanted.error / least))
        self._climb(tried, wanted)
        return self._chosen(tried, wanted)

    def _climb(self, tried: dict[Placement, float], wanted: Wanted) -> None:
        """Try neighbours of the best, and from each that is better those of that one, as far as the budget goes."""
        best, near = None, iter(())
        while len(tried) < self.budget.tries:
            if self._chosen(tried, wanted) != best:
                best = self._chosen(tried, wanted)
                near = iter(self.search().neighbours(best, wanted))
            placement = next((other for other in near if other not in tried), None)
            if placement is None:
                break
            self._try(placement, tried)

    def _try(self, placement: Placement, tried: dict[Placement, float]) -> None:
        if placement not in tried:
            tried[placement] = self.error(self.placements.rule(placement), self.budget.search)
            self.say(f"  tried {_shown(placement)}: cost {self.placements.cost(placement):.3f}, error {tried[placement]:.4f}")

    def _chosen(self, tried: dict[Placement, float], wanted: Wanted) -> Placement:
        enough = [placement for placement, found in tried.items() if wanted.error is not None and found <= wanted.error]
        if enough:
            return min(enough, key=lambda placement: (round(self.placements.cost(placement), 6), tried[placement]))
        return min(tried, key=tried.__getitem__)

    def error(self, rule: Guidance, draw: Draw) -> float:
        """That of finished samples."""
        return error(*self._moved(rule, draw))

    def judged(self, rule: Guidance) -> Judged:
        """An approximate rule on the samples that judge."""
        cost = self.engine.plan(rule, **run_of(self.exact)).cost.relative
        return Judged(rule, cost, *self._moved(rule, self.budget.judgement))

    def unguided_distance(self) -> Statistic:
        """The relative distances of unguided samples from exact ones: median, 20th and 80th percentile."""
        _, unguided = self._drawn(self.budget.judgement)
        return Statistic.of(unguided.numpy())

    def exact_work(self, draw: Draw) -> float:
        """How many unguided samples take as long as the exact and the unguided ones of ``draw``, where these are missing."""
        return 0.0 if draw in self._exact else draw.samples * (self.exact.cost.relative + 1)

    def search_work(self) -> float:
        """About how many unguided samples take as long as :meth:`best`."""
        exact, search = self.exact.cost.relative, self.budget.search
        work = self.exact_work(search) + self.budget.tries * search.samples * exact
        if self._search is None:  # a run that leaves a call out begins there, on average in the middle
            work += self.budget.measured.samples * exact * (1 + len(self.placements.changes) / 2)
        return work

    def _moved(self, rule: Guidance, draw: Draw) -> tuple[Tensor, Tensor]:
        """Distances [samples] of a rule's finished samples and of unguided ones from the exact ones."""
        samples, unguided = self._drawn(draw)
        return distances(Finished(self.engine, self.exact, draw).samples(rule), samples), unguided

    def _drawn(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """The exact samples, and the distances of unguided ones."""
        if draw not in self._exact:
            finished = Finished(self.engine, self.exact, draw)
            samples = finished.samples(self.exact.rules[0])
            self._exact[draw] = samples, distances(finished.samples(None), samples)
        return self._exact[draw]

    def calibration(self, judged: Judged) -> Calibration:
        """What the file says."""
        exact, draw, found = self.exact, self.budget.judgement, judged.interval()
        names = dict.fromkeys(branch.model for branch in exact.branches)
        return Calibration(
            model=exact.spec.name,
            weights=rounded_fingerprint({name: self.engine.models[name] for name in names}),
            rule=rule_text(exact.rules[0]),
            schedule=exact.schedule.name,
            sigmas=tuple(map(float, exact.schedule.sigmas)),
            solver=exact.solver.name,
            height=exact.height,
            width=exact.width,
            reuse=tuple(term.reuse for term in judged.rule.terms),
            exact_cost=exact.cost.relative,
            cost=judged.cost,
            error=found.value,
            low=found.low,
            high=found.high,
            samples=draw.samples,
            first_seed=draw.first_seed,
            searched=self.budget.search.samples,
            searched_from=self.budget.search.first_seed,
            command=command_line(),
        )


def _shown(placement: Placement) -> str:
    return " | ".join(
        f"order {order} at {','.join(str(call + 1) for call in calls)}"
        for calls, order in zip(placement.calls, placement.orders, strict=True)
    )


def calibrate_model(
    source: Source, rule: str, wanted: Wanted, run: RunOptions, budget: Budget, out: Path, force: bool, as_json: bool
) -> None:
    """Search, judge, write the file and say what it holds.  Raises ``ValueError`` before any work."""
    if not force:
        refuse_existing(out)
    check_writable(out, folder=False)
    refuse_prompt_model(source, "calibrations are searched on models of classes")
    engine = open_engine(source)
    parsed = parse_rule(rule, engine.spec)
    exact = make_plan(engine, parsed, run)

    def say(line: str) -> None:
        if not as_json:
            print(line, flush=True)

    calibrator = Calibrator(engine, exact, budget, say)
    calibrator.check(wanted)
    say(f"{rule_text(exact.rules[0])}: {exact.cost.relative:.3f}x unguided, wanted {wanted}")
    placement = calibrator.best(wanted)
    made = calibrator.calibration(calibrator.judged(calibrator.placements.rule(placement)))
    with whole_file(out) as part:
        part.write_text(made.to_json(), encoding="utf-8")
    if wanted.error is not None and made.error > wanted.error:
        print(f"warning: its error is {made.error:.3f} on the samples that judge, and {wanted} was wanted", file=sys.stderr)
    if as_json:
        print(json.dumps({"file": str(out)} | made.to_dict()))
        return
    error = f"error {made.error:.3f} ({made.low:.3f} to {made.high:.3f})"
    print(
        f"{made.cost:.3f}x unguided instead of {made.exact_cost:.3f}x, {error} of the distance between unguided and exact "
        f"samples, by {made.samples} samples of other seeds"
    )
    print(f"wrote {out}")
