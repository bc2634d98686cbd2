"""The runs of an engine that are under way: they come, make a call at each tick, and go.  No threads, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .drawing import Drawing
from .lane import Lane, RowCount, SharedRun, why_alone
from .sizes import Sizes
from .solo import SoloRun

AnyRun = SharedRun | SoloRun


@dataclass(frozen=True)
class Ticked:
    """What a tick did: the runs whose call was made, those that failed and why, and rows of the forwards."""

    made: tuple[AnyRun, ...]
    failed: dict[AnyRun, Exception] = field(default_factory=dict)
    rows: RowCount = field(default_factory=RowCount)


class Slots:
    """Up to ``count`` runs at once on an engine, those of one size in one lane."""

    def __init__(self, engine: Any, count: int, sizes: Sizes):
        self.engine, self.count, self.sizes = engine, count, sizes
        self.lanes: list[Lane] = []
        self.runs: dict[AnyRun, int] = {}  # and the tick at which each made its last call
        self._lane_of: dict[AnyRun, Lane] = {}
        self._ticks = 0
        self._models = engine.models

    @property
    def free(self) -> int:
        return self.count - len(self.runs)

    def may_join(self) -> bool:
        """Whether a run can begin now: there is a place, and the weights are those that the others run with."""
        return self.free > 0 and (not self.runs or self.engine.is_current())

    def join(self, drawing: Drawing) -> AnyRun:
        """Begin a run.  Raises what :meth:`.EngineCore.prepare` raises."""
        if not self.runs:
            self.engine.refresh()
            if self.engine.models is not self._models:
                self.lanes, self._models = [], self.engine.models
        reason = why_alone(drawing.plan, self.engine.models)
        lane = None if reason else self._lane(drawing)
        reason = reason or lane.why_too_many(drawing.plan)
        run: AnyRun = SoloRun(self.engine, drawing, reason) if reason else lane.join(drawing)
        if not reason:
            self._lane_of[run] = lane
        self.runs[run] = self._ticks
        return run

    def _lane(self, drawing: Drawing) -> Lane:
        """The lane of a run's size."""
        for lane in self.lanes:
            if lane.holds(drawing.plan):
                return lane
        engine = self.engine
        options = engine.device, engine.selection.kernels, engine.capture
        self.lanes.append(Lane(engine.models, drawing.plan, self.count, self.sizes, *options))
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
        made: list[AnyRun] = []
        failed: dict[AnyRun, Exception] = {}
        rows = RowCount()
        for lane in self.lanes:
            chosen = lane.choose([run for run in waiting if self._lane_of.get(run) is lane])
            if chosen:
                rows += self._tick_lane(lane, chosen, made, failed)
        for run in waiting:
            if isinstance(run, SoloRun):
                rows += self._tick_solo(run, made, failed)
        for run in made:
            self.runs[run] = self._ticks
        return Ticked(tuple(run for run in made if run not in failed), failed, rows)

    def _tick_lane(
        self, lane: Lane, chosen: Sequence[SharedRun], made: list[AnyRun], failed: dict[AnyRun, Exception]
    ) -> RowCount:
        try:
            rows, broken = lane.tick(chosen)
        except Exception as error:
            failed |= dict.fromkeys(chosen, error)
            return RowCount()
        failed |= broken
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
