"""The guided velocity as a function of state and noise level, for sampling loops that belong to someone else.

It is a program whose solver leaves the velocity itself in the state, so live branches, forks and graphs are those of a run.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.models.parameterization import Parameterization
from segue.models.spec import ModelSpec

from .core import EngineCore
from .planning.compile import compile_plan
from .planning.plan import Plan
from .planning.plan_warnings import warn_caller
from .planning.schedule import Schedule
from .planning.solver_rows import Solver
from .planning.solvers import VELOCITY
from .rules.batch import RulesLike, check_count, plain_rules, rules_and_notes
from .running.program import Program
from .running.recorded_call import check_unrecorded, is_recorded, recorded_call

LEVEL_TOLERANCE = 1e-6  # an fp32 copy of a level is that level


def level_tolerance(levels: np.ndarray, *dtypes: torch.dtype) -> np.ndarray:
    """How far ``levels`` may lie from those that a loop means, if it keeps them in ``dtypes``: one spacing of the coarsest."""
    spacing = max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)
    return np.maximum(LEVEL_TOLERANCE, spacing * levels)


def levels_on_host(sigma: Tensor) -> np.ndarray:
    """Noise levels as fp64 on the host; not every device has fp64."""
    return sigma.detach().cpu().double().numpy()


class GuidedVelocity:
    """``v(x, sigma)`` under a guidance rule, for B samples of one size, in a program of its own.

    ``conditions(plan)`` gives what the model's rows take for each condition of a plan.  With ``sigmas``, the levels the
    caller will ask for, all tables are made once; without, new levels replace those before.  Windows in steps or fractions
    and weights with a delta need ``sigmas``; windows in sigma do not.  ``solver`` (a ``velocity_solver``) says which calls
    the caller makes for ``sigmas``: by default one per step.  ``specs`` replace the engine's (another prompt length).
    """

    program: Program | None = None

    def __init__(
        self,
        engine: EngineCore,
        guidance: RulesLike,
        conditions: Callable[[Plan], Mapping[str | int, Any]],
        height: int,
        width: int,
        sigmas: Schedule | None = None,
        solver: Solver = VELOCITY,
        specs: Mapping[str, ModelSpec] | None = None,
    ):
        self.engine, self.conditions, self.solver = engine, conditions, solver
        self.specs = engine.specs if specs is None else specs
        self.guidance, notes = rules_and_notes(guidance, self.specs["main"])
        for note in notes:
            warn_caller(note)
        self.height, self.width = height, width
        if sigmas is None:
            for rule in plain_rules(self.guidance):
                if what := rule.needs_schedule():
                    raise ValueError(f"{what} needs the schedule: give the sigmas that will be asked for")
        self.fixed = sigmas is not None
        self.plan: Plan | None = self._compile(sigmas) if sigmas is not None else None
        self._last: np.ndarray | None = None  # the calls before, if they followed upon loading

    def check_samples(self, count: int) -> None:
        """Raise ``ValueError`` for a rule with numbers for another batch than ``count`` samples."""
        check_count(self.guidance, count)

    def __del__(self):
        self.release()

    def release(self) -> None:
        """Give the program back to the engine; the next call loads one again."""
        program, self.program = self.program, None
        if program is not None:
            self.engine.release(program)

    def _compile(self, schedule: Schedule) -> Plan:
        return compile_plan(self.guidance, schedule, self.solver, self.specs, self.height, self.width)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B, C, H, W], any float dtype; sigma [B] in [0, 1] -> velocity [B, C, H, W] fp32.

        Where autograd records and ``x``, the conditions or the weights require gradients, these are the true ones: then the
        call runs outside static buffers and graphs, as slowly as a plain network.  Call under ``torch.no_grad()`` otherwise.

        Reads ``sigma`` on the host.  A new batch size, or a level outside the tables, loads the program again.  Where
        ``sigma`` or ``x`` is in half precision, a level within its spacing of one of ``sigmas`` is that one.  Raises
        ``ValueError`` for other shapes and levels.
        """
        check_unrecorded("the noise level, which is read on the host,", sigma=sigma)
        levels = levels_on_host(sigma)
        if levels.shape != (x.shape[0],) or not ((levels >= 0) & (levels <= 1)).all():
            raise ValueError(f"sigma must hold {x.shape[0]} noise levels in [0, 1], got {levels.tolist()}")
        shape = (self.specs["main"].channels, self.height, self.width)
        if tuple(x.shape[1:]) != shape:
            raise ValueError(f"each sample must have shape {shape}, got {tuple(x.shape[1:])}")
        self._load(x, levels, level_tolerance(levels, sigma.dtype, x.dtype))
        return self.at_calls(x, self._calls(levels))

    def at_calls(self, x: Tensor, calls: np.ndarray, values: bool = True) -> Tensor:
        """The velocity at rows ``calls`` [B] of the loaded plan.

        What the rule carries from call to call, it carries to the same call again (another stage of a step) and to the next;
        a sample that comes from any other call starts anew.  Weights that have changed since are followed (``values``: see
        :class:`segue.models.weight_watch.WeightWatch`).
        """
        self.engine.follow(self.program, values)
        live = self._begin_calls(calls)
        if is_recorded(self._inputs(x)):
            return recorded_call(self.program, self.engine.networks_to_record(), self.conditions(self.plan), x, live)
        with torch.no_grad():
            self.program.x.copy_(x)
            self.program.advance(live)
            return self.program.x.clone()

    def _inputs(self, x: Tensor) -> Iterator[Tensor]:
        """All that gradients may be wanted of."""
        yield x
        for condition in self.conditions(self.plan).values():
            yield from (condition,) if isinstance(condition, Tensor) else (condition.context, condition.pooled)
        if torch.is_grad_enabled():
            yield from self.engine.recorded_inputs()

    @torch.no_grad()
    def _begin_calls(self, calls: np.ndarray) -> tuple[int, ...]:
        """Put every sample at its call; returns the live branches."""
        program, plan = self.program, self.plan
        program.place(calls)
        fresh = np.ones(len(calls), bool) if self._last is None else (calls != self._last) & (calls != self._last + 1)
        program.forget(fresh)
        self._last = calls
        live, stopping = plan.live_at(calls, fresh), program.combination.stopping
        return stopping.without_stopped(live, stopping.ended().tolist()) if plan.adaptive else live

    def _calls(self, levels: np.ndarray) -> np.ndarray:
        wanted = self.plan.parameterization.snap(levels)
        return np.abs(self.plan.sigmas[None] - wanted[:, None]).argmin(axis=1)

    def _load(self, x: Tensor, levels: np.ndarray, tolerance: np.ndarray) -> None:
        """Make sure that the program holds these levels, give or take ``tolerance``, for this batch."""
        plan = self.plan
        if plan is not None:
            plan.check_samples(len(x))
            distance = np.abs(plan.sigmas[None] - plan.parameterization.snap(levels)[:, None]).min(axis=1)
            known = distance <= (tolerance if self.fixed else LEVEL_TOLERANCE)
            if not known.all() and self.fixed:
                unknown, last = levels[~known][0], plan.schedule.sigmas[-1]
                where = ", which end there" if unknown == last else ""
                raise ValueError(f"sigma {unknown:.6g} is not one of the {plan.calls} levels this was made for{where}")
            stale = self.program is None or len(self.program.x) != len(x)
            if known.all() and not stale:
                return
        if not self.fixed:
            distinct = np.unique(Parameterization(self.specs["main"]).snap(levels))  # ascending
            self.plan = self._compile(Schedule((*distinct[::-1].tolist(), 0.0)))
        self.load(x)

    def remember(self, other: "GuidedVelocity") -> None:
        """Go on where ``other``, with the same plan and batch, has come to."""
        for mine, theirs in zip(self.program.rule_memory(), other.program.rule_memory(), strict=True):
            mine.copy_(theirs)
        self._last = other._last

    def load(self, x: Tensor) -> None:
        """Put the plan and its conditions into a program for a batch like ``x``, ready for :meth:`at_calls`."""
        self._last = None
        self.release()
        seeds = range(len(x))  # the velocity uses no noise; labels that are drawn at random differ by place
        with torch.no_grad():
            self.program = self.engine.prepare(self.plan, self.conditions(self.plan), seeds, x.detach().float())
