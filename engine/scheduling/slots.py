"""The runs of an engine that are under way: they come, make a call at each tick, and go.  No threads, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..numeric_input import counting_number
from ..planning.plan import Plan
from .drawing import Drawing
from .errors import MemoryLimitError
from .lane import Lane, RowCount, why_alone
from .lane_runs import LaneRun
from .memory import usual_limit
from .pace import Pace
from .sizes import Sizes
from .solo import SoloRun

AnyRun = LaneRun | SoloRun


@dataclass(frozen=True)
class Ticked:
    """What a tick did: the runs whose call was made, those that failed and why, and rows of the forwards."""

    made: tuple[AnyRun, ...]
    failed: dict[AnyRun, Exception] = field(default_factory=dict)
    rows: RowCount = field(default_factory=RowCount)


class Slots:
    """Up to ``count`` runs at once on an engine, those of one size in one lane.

    Lanes take up to ``memory`` bytes together, by default most of what the device has.
    """

    def __init__(self, engine: Any, count: int, sizes: Sizes, memory: int | None = None):
        self.engine, self.count, self.sizes = engine, count, sizes
        self.memory = usual_limit(engine.device) if memory is None else counting_number(memory, "memory")
        self._needs: dict[tuple[Any, ...], int] = {}  # bytes of a lane, by size and networks
        self.lanes: list[Lane] = []
        self.runs: dict[AnyRun, int] = {}  # and the tick at which each made its last call
        self._lane_of: dict[LaneRun, Lane] = {}
        self._ticks, self._pace = 0, Pace(engine.device)
        self._models = engine.models

    @property
    def free(self) -> int:
        return self.count - len(self.runs)

    def check(self, plan: Plan) -> None:
        """Raise :class:`.errors.MemoryLimitError` for a run that would take more memory than there may be, even alone."""
        need = self._need(plan)
        if need > self.memory:
            size = f"{plan.height} x {plan.width}"
            raise MemoryLimitError(
                f"runs of {size} latents would take {need / 2**30:.3g} GiB, and there are {self.memory / 2**30:.3g}"
            )

    def _need(self, plan: Plan) -> int:
        names = plan.models(tuple(range(len(plan.branches))))
        key = plan.height, plan.width, plan.spec.text_tokens, names
        if key not in self._needs:
            shared = not why_alone(plan, self.engine.models)
            self._needs[key] = Lane.memory(self.engine.models, plan, self.count, self.sizes) if shared else 0
        return self._needs[key]

    def may_join(self, plan: Plan) -> bool:
        """Whether a run can begin now: there is a place, the weights are those that the others run with, and memory is left."""
        if not self.free or (self.runs and not self.engine.is_current()):
            return False
        home = next((lane for lane in self.lanes if lane.holds(plan)), None)
        others = sum(lane.taken for lane in self._used() if lane is not home)
        return others + max(self._need(plan), home.taken if home else 0) <= self.memory

    def _used(self) -> list[Lane]:
        """The lanes that have runs; the others can be dropped."""
        return [lane for lane in self.lanes if lane.free < self.count]

    def join(self, drawing: Drawing) -> AnyRun:
        """Begin a run.  Raises what :meth:`.EngineCore.prepare` raises."""
        if not self.runs:
            self.engine.refresh()
            if self.engine.models is not self._models:
                self.lanes, self._models = [], self.engine.models
        run: AnyRun
        if reason := why_alone(drawing.plan, self.engine.models):
            run = SoloRun(self.engine, drawing, reason)
        else:
            lane = self._lane(drawing)
            if reason := lane.why_too_many(drawing.plan):
                run = SoloRun(self.engine, drawing, reason)
            else:
                run = lane.join(drawing)
                self._lane_of[run] = lane
        self.runs[run] = self._ticks
        return run

    def _lane(self, drawing: Drawing) -> Lane:
        """The lane of a run's size."""
        for lane in self.lanes:
            if lane.holds(drawing.plan):
                lane.taken = max(lane.taken, self._need(drawing.plan))
                return lane
        engine, need = self.engine, self._need(drawing.plan)
        if sum(lane.taken for lane in self.lanes) + need > self.memory:
            self.lanes = self._used()
        options = engine.device, engine.selection.kernels, engine.capture
        self.lanes.append(Lane(engine.models, drawing.plan, self.count, self.sizes, *options))
        self.lanes[-1].taken = need
        return self.lanes[-1]

    def leave(self, run: AnyRun) -> Tensor:
        """End a run, wherever it is; returns its state [1, C, H, W] fp32, which nothing writes to any more."""
        del self.runs[run]
        if isinstance(run, SoloRun):
            state = run.x.clone()
            run.leave()
            return state
        self._lane_of.pop(run).leave(run)
        return run.x

    def tick(self) -> Ticked:
        """Make the next call of the runs: of all whose rows fit together; those that wait come first at the next tick."""
        self._ticks += 1
        waiting = sorted(self.runs, key=self.runs.__getitem__)
        if not self.engine.is_current():
            error = RuntimeError("the network was changed in the middle of a run; change it between runs")
            return Ticked((), dict.fromkeys(waiting, error))
        self._pace.wait()
        made: list[AnyRun] = []
        failed: dict[AnyRun, Exception] = {}
        rows = RowCount()
        for lane in self.lanes:
            own = [run for run in waiting if isinstance(run, LaneRun) and self._lane_of[run] is lane]
            chosen = lane.choose(own)
            if chosen:
                rows += self._tick_lane(lane, chosen, made, failed)
        for run in waiting:
            if isinstance(run, SoloRun):
                rows += self._tick_solo(run, made, failed)
        self._pace.mark()
        for run in made:
            self.runs[run] = self._ticks
        return Ticked(tuple(run for run in made if run not in failed), failed, rows)

    def _tick_lane(
        self, lane: Lane, chosen: Sequence[LaneRun], made: list[AnyRun], failed: dict[AnyRun, Exception]
    ) -> RowCount:
        try:
            rows, broken = lane.tick(chosen)
        except Exception as error:
            failed.update(dict.fromkeys(chosen, error))
            return RowCount()
        for run, error in broken.items():
            failed[run] = error
        made += chosen
        return rows

    def _tick_solo(self, run: SoloRun, made: list[AnyRun], failed: dict[AnyRun, Exception]) -> RowCount:
        try:
            rows = run.step()
        except Exception as error:
            failed[run] = error
            return RowCount()
        made.append(run)
        return RowCount(rows, rows)
