"""The runs of an engine that are under way: they come, make a call at each tick, and go.  No threads, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..numeric_input import counting_number
from ..planning.plan import Plan
from .drawing import Drawing
from .errors import MemoryLimitError
from .lane import Lane, RowCount, networks_of, why_alone, why_too_many
from .lane_runs import LaneRun
from .memory import usual_limit
from .pace import Pace
from .sizes import Sizes
from .solo import SoloRun

AnyRun = LaneRun | SoloRun
KEPT = 1 / 8  # of the memory, at most: programs that the engine keeps for later runs


@dataclass(frozen=True)
class Ticked:
    """What a tick did: the runs whose call was made, those that failed and why, and rows of the forwards."""

    made: tuple[AnyRun, ...]
    failed: dict[AnyRun, Exception] = field(default_factory=dict)
    rows: RowCount = field(default_factory=RowCount)


class Slots:
    """Up to ``count`` runs at once on an engine, those of one size in one lane.

    Lanes, and the programs of runs that share none, take up to ``memory`` bytes together, by default most of what the device
    has.  Beside them are the programs that the engine keeps, of which runs here leave it at most :data:`KEPT` of the memory.
    """

    def __init__(self, engine: Any, count: int, sizes: Sizes, memory: int | None = None):
        self.engine, self.count, self.sizes = engine, count, sizes
        self.memory = usual_limit(engine.device) if memory is None else counting_number(memory, "memory")
        self._needs: dict[tuple[int, int, int, frozenset[str]], int] = {}  # bytes of a lane, by size and networks
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
        reason = self._why_alone(plan)
        need = self._need(plan, reason)
        if need > self.memory:
            size = f"{plan.height} x {plan.width} latents"
            runs = f"a run of {len(plan.branches)} branches on {size}" if reason else f"runs of {size}"
            raise MemoryLimitError(f"{runs} would take {need / 2**30:.3g} GiB, and there are {self.memory / 2**30:.3g}")

    def may_join(self, plan: Plan) -> bool:
        """Whether a run can begin now: there is a place, the weights are those that the others run with, and memory is left."""
        if not self.free or (self.runs and not self.engine.is_current()):
            return False
        reason = self._why_alone(plan)
        home = None if reason else self._home(plan)
        return self._taken(self._used(), home) + self._need(plan, reason, home) <= self.memory

    def _why_alone(self, plan: Plan) -> str:
        """Why a run shares no forward; empty where it does."""
        return why_alone(plan, self.engine.models) or why_too_many(plan, self.sizes)

    def _need(self, plan: Plan, reason: str, home: Lane | None = None) -> int:
        """The bytes of a run's program where it runs alone, else of its lane: of ``home`` as it will be, or of a new one."""
        if reason:
            return SoloRun.memory_of(self.engine, plan)
        names = frozenset((*networks_of(plan), *(home.networks if home else ())))
        key = plan.height, plan.width, plan.spec.text_tokens, names
        if key not in self._needs:
            self._needs[key] = Lane.memory(self.engine.models, plan, self.count, self.sizes, names)
        return self._needs[key]

    def _home(self, plan: Plan) -> Lane | None:
        """The lane that a run joins; one without runs that would become too large with its networks is none."""
        for lane in self.lanes:
            if lane.holds(plan) and (lane.free < self.count or self._need(plan, "", lane) <= self.memory):
                return lane
        return None

    def _used(self) -> list[Lane]:
        """The lanes that have runs; the others can be dropped."""
        return [lane for lane in self.lanes if lane.free < self.count]

    def _taken(self, lanes: Sequence[Lane], home: Lane | None) -> int:
        """The bytes of lanes but ``home``, and of the programs of runs."""
        programs = sum(run.taken for run in self.runs if isinstance(run, SoloRun))
        return programs + sum(lane.taken for lane in lanes if lane is not home)

    def _make_room(self, need: int, home: Lane | None = None) -> None:
        """Drop the lanes without runs but ``home`` where so many bytes more, or of it, would be too many."""
        if self._taken(self.lanes, home) + need > self.memory:
            used = self._used()
            self.lanes = [lane for lane in self.lanes if lane is home or lane in used]

    def join(self, drawing: Drawing) -> AnyRun:
        """Begin a run.  Raises what :meth:`.EngineCore.prepare` raises."""
        if not self.runs:
            self.engine.refresh()
            if self.engine.models is not self._models:
                self.lanes, self._needs, self._models = [], {}, self.engine.models
        run: AnyRun
        if reason := self._why_alone(drawing.plan):
            need = self._need(drawing.plan, reason)
            self._make_room(need)
            run = SoloRun(self.engine, drawing, reason, need)
        else:
            lane = self._lane(drawing.plan)
            run = lane.join(drawing)
            self._lane_of[run] = lane
        self.runs[run] = self._ticks
        return run

    def _lane(self, plan: Plan) -> Lane:
        """The lane of a run's size, with memory for its networks."""
        home = self._home(plan)
        need = self._need(plan, "", home)
        self._make_room(need, home)
        if home is None:
            options = self.engine.device, self.engine.selection.kernels, self.engine.capture
            home = Lane(self.engine.models, plan, self.count, self.sizes, *options)
            self.lanes.append(home)
        home.taken = need
        return home

    def leave(self, run: AnyRun) -> Tensor:
        """End a run, wherever it is; returns its state [1, C, H, W] fp32, which nothing writes to any more."""
        del self.runs[run]
        if isinstance(run, SoloRun):
            state = run.x.clone()
            run.leave(keep=self.engine.MAX_PROGRAMS * run.taken <= KEPT * self.memory)
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
