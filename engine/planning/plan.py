"""Guidance x schedule x solver -> Plan: who runs at which call, with which numbers, at what cost."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from segue.models.parameterization import Parameterization
from segue.models.rows import FULL, SKIP, Path, RowLayout
from segue.models.spec import ModelSpec

from ..argument_names import refuses_unknown
from ..numeric_input import whole_number
from ..rules.correction import AdaptiveProjection
from ..rules.guidance import Branch, Exit, Guidance, Perturb
from ..rules.presets import RuleLike, rule_and_notes
from .plan_html import plan_html
from .plan_text import plan_dict, plan_summary, plan_text
from .schedule import Schedule
from .solvers import Solver, check_learned_variance, get_solver
from .term_weights import (
    channel_masks,
    correction_warnings,
    coverage_warnings,
    evaluated_calls,
    reference_branch,
    refresh_intervals,
    resolve_weights,
)


@dataclass(frozen=True)
class Run:
    """Consecutive calls ``[start, stop)`` with the same live and reused branches; ``live``: indices into ``Plan.branches``."""

    start: int
    stop: int
    live: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Work for one sample: network evaluations, transformer blocks, FLOPs, and FLOPs relative to unguided sampling.

    An evaluation is a branch with rows of its own in one call, shared prefix or not; an early-exit head is none.
    """

    calls: int
    evaluations: int
    blocks: int
    flops: int
    relative: float


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sampling run as tables.  ``branches[0]`` is the conditional branch, ``branches[k]`` the k-th guidance branch."""

    specs: Mapping[str, ModelSpec]
    guidance: Guidance
    schedule: Schedule
    solver: Solver
    height: int
    width: int
    branches: tuple[Branch, ...]
    sigmas: np.ndarray  # [N] noise level of each call
    steps: np.ndarray  # [N] step (from 0) that each call belongs to
    weights: np.ndarray  # [N, K] of the guidance branches, K = len(branches) - 1
    evaluated: np.ndarray  # [N, K] whether the branch runs; False with a weight: the direction c - k of an earlier call serves
    silent: np.ndarray  # [N] whether the velocity is zero, whatever the branches say
    masks: np.ndarray  # [K] guided latent channels per branch (the model's channel count: all)
    table: np.ndarray  # [N, 7] solver rows in the model's own output, see SOLVER_COLUMNS
    warnings: tuple[str, ...] = field(default=())

    @property
    def spec(self) -> ModelSpec:
        return self.specs["main"]

    @property
    def calls(self) -> int:
        return len(self.sigmas)

    @property
    def last_sigma(self) -> float:
        """The noise level of the result, where the network is not called any more."""
        return float(self.parameterization.snap(self.schedule.array()[-1:])[0])

    @property
    def parameterization(self) -> Parameterization:
        return Parameterization(self.spec)

    @property
    def spreads(self) -> np.ndarray:
        """``[N, 1]``, by how much a learned variance may raise the logarithm of the solver's deviation; else ``[N, 0]``."""
        if self.solver.spreads is None:
            return np.zeros((self.calls, 0))
        return self.solver.spreads(self.parameterization.snap(self.schedule.array()))[:, None]

    @cached_property
    def live(self) -> tuple[tuple[int, ...], ...]:
        """The branches evaluated at each call: the conditional one and those with a weight, unless a direction is reused.

        None where the velocity is zero.
        """
        rows = zip(self.evaluated, self.silent, strict=True)
        return tuple(() if silent else (0, *(int(k) + 1 for k in np.flatnonzero(row))) for row, silent in rows)

    @property
    def kept(self) -> tuple[int, ...]:
        """The branches whose directions ``c - k`` are kept, for calls that weigh them without evaluating them."""
        intervals = refresh_intervals(self.guidance, self.branches)
        return tuple(int(k) + 1 for k in np.flatnonzero(intervals > 1))

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        runs: list[Run] = []
        reused = (self.weights != 0) & ~self.evaluated
        for call, live in enumerate(self.live):
            if runs and runs[-1].live == live and (reused[call] == reused[call - 1]).all():
                runs[-1] = Run(runs[-1].start, call + 1, live)
            else:
                runs.append(Run(call, call + 1, live))
        return tuple(runs)

    @cached_property
    def live_sets(self) -> tuple[tuple[int, ...], ...]:
        """The distinct live sets, in order of first use: each is one step function and, on CUDA, one graph."""
        return tuple(dict.fromkeys(self.live))

    @cached_property
    def conditions(self) -> tuple[str | int, ...]:
        """The distinct conditions of the branches; a branch's slot is its condition's index here."""
        return tuple(dict.fromkeys(branch.condition for branch in self.branches))

    def coefficients(self) -> np.ndarray:
        """``[N, 1 + K, C']`` factors of the branch outputs; they sum to one, at silent calls to zero.

        C' is 1, or C where channels differ.
        """
        weak = -(self.weights * self.evaluated)[:, :, None] * self._channel_factors  # [N, K, C']
        whole = np.where(self.silent, 0.0, 1.0)[:, None, None]
        return np.concatenate([whole - weak.sum(axis=1, keepdims=True), weak], axis=1)

    def reused_weights(self) -> np.ndarray:
        """``[N, K, C']`` weights of directions ``c - k`` that were kept from an earlier call."""
        return (self.weights * ~self.evaluated)[:, :, None] * self._channel_factors

    @property
    def _channel_factors(self) -> np.ndarray:
        """``[K, C']``, 1 where a branch guides a channel."""
        channels = self.spec.channels
        if (self.masks >= channels).all():
            return np.ones((len(self.masks), 1))
        return (np.arange(channels)[None] < self.masks[:, None]).astype(np.float64)

    def models(self, live: tuple[int, ...]) -> tuple[str, ...]:
        """The networks that run for a live set."""
        return tuple(dict.fromkeys(self.branches[i].model for i in live))

    def members(self, live: tuple[int, ...], model: str) -> tuple[int, ...]:
        """The live branches that run through ``model``."""
        return tuple(i for i in live if self.branches[i].model == model)

    @cached_property
    def _layouts(self) -> dict[tuple[tuple[int, ...], str], RowLayout]:
        return {}

    def layout(self, live: tuple[int, ...], model: str = "main") -> RowLayout:
        """Row blocks and layer schedule of ``model`` for a set of live branches."""
        key = (live, model)
        if key not in self._layouts:
            depth = self.specs[model].depth
            paths = tuple(branch_path(self.branches[i], self.conditions, depth) for i in self.members(live, model))
            self._layouts[key] = RowLayout(paths, depth)
        return self._layouts[key]

    def call_cost(self, live: tuple[int, ...]) -> tuple[int, int, int]:
        """(evaluations, blocks, FLOPs) of one call for one sample."""
        evaluations = blocks = flops = 0
        for model in self.models(live):
            layout, spec = self.layout(live, model), self.specs[model]
            tokens = spec.tokens(self.height, self.width)
            evaluations += len(layout.blocks)
            blocks += layout.block_rows
            flops += spec.embed_flops(tokens) + layout.projections(early=self.combines_early(live)) * spec.readout_flops(tokens)
            flops += spec.readout_flops(tokens) if model == "main" and self.solver.spreads else 0  # the learned variance
            flops += sum(rows.active * spec.block_flops(layer, tokens) for layer, rows in enumerate(layout.layers))
        return evaluations, blocks, flops

    def combines_early(self, live: tuple[int, ...]) -> bool:
        """Whether branches that share a head are combined before the last projection."""
        return all(self.masks[i - 1] >= self.spec.channels for i in live if i) and not self.keeps_apart(live)

    @cached_property
    def reference(self) -> int | None:
        """The branch that the rule's correction acts on, if it acts on one."""
        return reference_branch(self.guidance, self.branches, self.spec)

    def keeps_apart(self, live: tuple[int, ...]) -> bool:
        """Whether the outputs of the live branches are needed one by one: for kept directions, and for a correction."""
        if self.guidance.correction and self.reference is None and (len(live) > 1 or self.kept):
            return True
        return any(i == self.reference or i in self.kept for i in live)

    @cached_property
    def cost(self) -> Cost:
        totals = np.sum([self.call_cost(live) for live in self.live], axis=0, dtype=object)
        unguided = self.calls * self.spec.forward_flops(self.height, self.width)
        return Cost(self.calls, int(totals[0]), int(totals[1]), int(totals[2]), float(totals[2] / unguided))

    def to_dict(self) -> dict[str, Any]:
        """Everything that a run needs to be repeated, and what it costs, in plain numbers and strings."""
        return plan_dict(self)

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        return plan_text(self)

    def __repr__(self) -> str:
        return f"<Plan {plan_summary(self)}>"

    def _repr_html_(self) -> str:
        return plan_html(self)


def branch_path(branch: Branch, conditions: tuple[str | int, ...], depth: int) -> Path:
    """A branch as one operation per layer."""
    operations = [FULL] * depth
    if isinstance(branch.network, Exit):
        operations = operations[: branch.network.layer]
    elif isinstance(branch.network, Perturb):
        for layer in branch.network.layers:
            operations[layer] = SKIP if branch.network.kind == "skip" else branch.network.kind
    return Path(conditions.index(branch.condition), tuple(operations))


def _check_branch(branch: Branch, specs: Mapping[str, ModelSpec]) -> None:
    if branch.model not in specs:
        held = ", ".join(specs)
        raise ValueError(f"no network named {branch.model!r}; the engine holds: {held} (from_pretrained takes further models)")
    spec, main = specs[branch.model], specs["main"]
    same = (
        "channels",
        "patch",
        "prediction",
        "time",
        "num_classes",
        "parents",
        "text_dim",
        "pooled_dim",
    )  # mean the same to both
    if any(getattr(spec, name, None) != getattr(main, name, None) for name in same):
        raise ValueError(f"network {branch.model!r} differs from the main one in one of: {', '.join(same)}")
    if isinstance(branch.network, Perturb):
        for layer in branch.network.layers:
            if layer >= spec.depth:
                raise ValueError(f"layer {layer} does not exist: {spec.name} has layers 0 to {spec.depth - 1}")
    if isinstance(branch.network, Exit) and branch.network.layer not in spec.exits:
        known = ", ".join(map(str, spec.exits)) or "none"
        raise ValueError(f"{spec.name} has no early-exit head after layer {branch.network.layer}; it has: {known}")


def _check_above_zero(guidance: Guidance, sigmas: np.ndarray, weights: np.ndarray) -> None:
    """Raise ``ValueError`` for a correction of clean estimates that weighs something at level 0."""
    if (weights[sigmas == 0] != 0).any():
        raise ValueError(
            f"{guidance.correction} acts on clean estimates, which at level 0 are the sample itself in every branch: "
            "give its term Window.sigma(0, 1), which begins above"
        )


def _check_condition(branch: Branch, spec: ModelSpec) -> None:
    if branch.condition == "parent" and not getattr(spec, "parents", ()):
        raise ValueError(f"the condition 'parent' needs superclasses, and {spec.name} has none")
    if isinstance(branch.condition, int):
        classes = getattr(spec, "num_classes", 0)
        if not 0 <= branch.condition < classes:
            raise ValueError(f"label {branch.condition} is out of range: {spec.name} has classes 0 to {classes - 1}")


def _solver_table(solver: Solver, sigmas: np.ndarray, parameterization: Parameterization) -> tuple[np.ndarray, list]:
    """The [N, 7] table: the solver's rows with the network's own output ``o`` in place of ``v = m y + n o``."""
    rows = solver.rows(sigmas)
    levels = np.array([row.sigma for row in rows])
    m, n = parameterization.velocity(levels)
    scale = parameterization.input_scale(levels)
    values = np.array([(row.a, row.b, row.c, row.d, row.e, row.f) for row in rows])
    a, b, c, d, e, f = values.T
    return np.stack([scale, a + b * m, b * n, c, d, e + f * m, f * n], axis=1), rows


def checked_size(spec: ModelSpec, height: int | None, width: int | None) -> tuple[int, int]:
    """A latent size that ``spec`` can cut into patches, its own where None.  Raises ``TypeError`` or ``ValueError``."""
    height = spec.height if height is None else whole_number(height, "the latent height must be a whole number")
    width = spec.width if width is None else whole_number(width, "the latent width must be a whole number")
    spec.check_size(height, width)
    return height, width


@refuses_unknown()
def compile_plan(
    guidance: RuleLike,
    schedule: Schedule,
    solver: Solver | str,
    specs: Mapping[str, ModelSpec] | ModelSpec,
    height: int | None = None,
    width: int | None = None,
) -> Plan:
    """Resolve a guidance rule, or its text, against a schedule and a solver for a model.

    ``specs`` maps network names (``main`` and those that guidance refers to) to their specs; ``height`` and ``width`` are
    the latent size, by default the model's own.  Raises ``ValueError`` for a layer, exit, label or network that does not
    exist; holes, overlaps, empty windows and numbers that are not the model's own are ``Plan.warnings``.
    """
    if isinstance(specs, ModelSpec):
        specs = {"main": specs}
    spec, solver = specs["main"], get_solver(solver)
    guidance, notes = rule_and_notes(guidance, spec)
    height, width = checked_size(spec, height, width)
    parameterization = Parameterization(spec)
    sigmas = parameterization.snap(schedule.array())
    for i in np.flatnonzero((np.diff(sigmas) == 0) & (np.diff(schedule.array()) != 0)):
        first, second = schedule.sigmas[i : i + 2]
        raise ValueError(
            f"noise levels {first:.6g} and {second:.6g} are the same to {spec.name}: the nearest of its "
            f"{parameterization.TRAIN_STEPS} levels is {sigmas[i]:.6g}"
        )
    for term in guidance.terms:
        _check_branch(term.branch, specs)
        _check_condition(term.branch, spec)
        if term.channels is not None and term.channels > spec.channels:
            raise ValueError(f"channels {term.channels} is out of range: {spec.name} has {spec.channels} latent channels")
    zero_steps = guidance.correction.zero_steps if guidance.correction else 0
    check_learned_variance(solver, spec, zero_steps)
    table, rows = _solver_table(solver, sigmas, parameterization)
    branches, weights, warnings = resolve_weights(guidance, sigmas[:-1])
    reference = reference_branch(guidance, branches, spec)
    if reference is not None and isinstance(guidance.correction, AdaptiveProjection):
        _check_above_zero(guidance, sigmas[:-1], weights[:, reference - 1])
    weights[:zero_steps] = 0.0
    warnings += coverage_warnings(guidance, sigmas[:-1]) + correction_warnings(guidance, branches, schedule.steps)
    steps = np.array([row.step for row in rows])
    return Plan(
        specs=specs,
        guidance=guidance,
        schedule=schedule,
        solver=solver,
        height=height,
        width=width,
        branches=branches,
        sigmas=np.array([row.sigma for row in rows]),
        steps=steps,
        weights=weights[steps],
        silent=steps < zero_steps,
        evaluated=evaluated_calls(weights[steps], refresh_intervals(guidance, branches)),
        masks=channel_masks(guidance, branches, spec.channels),
        table=table,
        warnings=(*notes, *warnings),
    )
