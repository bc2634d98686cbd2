"""A plan: who runs at which call, with which numbers, at what cost."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from segue.models.parameterization import Parameterization
from segue.models.rows import NO_GATE, RowLayout
from segue.models.spec import ModelSpec

from ..numeric_input import whole_number
from ..rules.batch import Rules, check_count, plain_rules
from ..rules.branch import NEGATIVE_TEXT, Branch
from ..rules.calibration import Calibration
from ..rules.correction import STEP, WHOLE, CallLevels, Correction
from ..rules.drawn import Chooser, ClassifierReference, Draw, plain_condition
from ..rules.dropped_blocks import DropBlocks
from ..rules.guidance import Guidance
from .branch_paths import branch_path, opened_blocks
from .plan_html import plan_html
from .plan_text import plan_dict, plan_summary, plan_text
from .reuse import ReuseTables, reuse_tables
from .schedule import Schedule
from .solver_rows import Solver

Condition = Any  # cond, uncond, parent, an integer label or a Draw
ALPHA = 2  # the column of ``Plan.attention`` that is 0 where NAG is off


@dataclass(frozen=True)
class Run:
    """Consecutive calls ``[start, stop)`` with the same live and reused branches; ``live``: indices into ``Plan.branches``."""

    start: int
    stop: int
    live: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Work for one sample: network evaluations, transformer blocks, FLOPs, and FLOPs relative to unguided sampling.

    An evaluation is a branch with rows of its own in one call, shared prefix or not; an early-exit head is none, nor is a
    text alone, whose blocks are counted apart.
    """

    calls: int
    evaluations: int
    blocks: int
    flops: int
    relative: float
    text_blocks: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sampling run as tables.  ``branches[0]`` is the conditional branch, ``branches[k]`` the k-th guidance branch.

    Where samples have numbers of their own, ``samples`` holds the plan of each, over the same branches, and ``weights``,
    ``evaluated``, ``silent`` and ``attention`` have one more dimension in front, B; a branch runs in a call if any sample
    needs it there.
    """

    specs: Mapping[str, ModelSpec]
    guidance: Rules
    schedule: Schedule
    solver: Solver
    height: int
    width: int
    branches: tuple[Branch, ...]
    sigmas: np.ndarray  # [N] noise level of each call
    steps: np.ndarray  # [N] step (from 0) that each call belongs to
    weights: np.ndarray  # [N, K] of the guidance branches, K = len(branches) - 1
    evaluated: np.ndarray  # [N, K] whether the branch runs; False with a weight: the direction c - k of an earlier call serves
    adaptive: tuple[int, ...]  # branches that stop guiding a sample, so that they may run at fewer calls than planned
    stops: tuple[float | None, ...]  # [K] the cosines at which they do
    orders: tuple[int, ...]  # [K] of the polynomials that extrapolate kept directions
    silent: np.ndarray  # [N] whether the velocity is zero, whatever the branches say
    attention: np.ndarray  # [N, 3] scale, tau and alpha of NAG, whose text is evaluated where it acts
    masks: np.ndarray  # [K] guided latent channels per branch (the model's channel count: all)
    kept: tuple[int, ...]  # branches whose directions c - k are kept, for calls that weigh them without evaluating them
    places: int  # how many directions of each are kept
    reference: int | None  # the branch that corrections of the rule act on, if any does
    earlier: int  # how many rows before the previous one the rows of the solver weigh
    table: np.ndarray  # [N, 7 + earlier] solver rows in the model's own output, see SOLVER_COLUMNS
    classifier_flops: Mapping[ClassifierReference, int | None] = field(default_factory=dict)  # of a sample; None: unknown
    warnings: tuple[str, ...] = field(default=())
    samples: tuple["Plan", ...] = field(default=())  # the plan of each sample, where they differ

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
    def stochastic(self) -> bool:
        """Whether the solver of any sample draws noise."""
        return any(own.solver.stochastic for own in self.samples or (self,))

    @property
    def learned_variance(self) -> bool:
        """Whether that of any sample reads its variance from the network."""
        return any(own.solver.spreads is not None for own in self.samples or (self,))

    @property
    def spreads(self) -> np.ndarray:
        """``[N, 1]``, by how much a learned variance may raise the logarithm of the solver's deviation."""
        if self.solver.spreads is None:
            return np.zeros((self.calls, 1))
        return self.solver.spreads(self.parameterization.snap(self.schedule.array()))[:, None]

    @cached_property
    def live(self) -> tuple[tuple[int, ...], ...]:
        """The branches evaluated at each call: the conditional one and those with a weight, unless a direction is reused.

        None where the velocity is zero.
        """
        evaluated, silent = self.evaluated, self.silent
        if self.samples:
            evaluated, silent = np.any(evaluated, axis=0), np.all(silent, axis=0)
        rows = zip(evaluated, silent, strict=True)
        return tuple(() if quiet else (0, *(int(k) + 1 for k in np.flatnonzero(row))) for row, quiet in rows)

    @property
    def times(self) -> list[np.ndarray]:
        """The network times of the calls, [N]: of all samples, or of each."""
        return [own.parameterization.network_time(own.sigmas) for own in self.samples or (self,)]

    def live_at(self, calls: np.ndarray, fresh: np.ndarray) -> tuple[int, ...]:
        """The branches to evaluate where sample i is at ``calls[i]``; calls [B], fresh [B] bool.

        A branch that is dead for some of the samples has weight zero there; after its last call a sample needs none.  The
        ``fresh`` samples have kept no direction: of a kept branch that weighs something they need another.
        """
        live: set[int] = set()
        for plan, call, anew in zip(self.samples or (self,) * len(calls), calls.tolist(), fresh, strict=True):
            if call < plan.calls:
                live.update(plan.live[call])
                live.update(branch for branch in plan.kept if anew and plan.weights[call, branch - 1])
        return tuple(sorted(live))

    def check_samples(self, count: int) -> None:
        """Raise ``ValueError`` unless the plan serves ``count`` samples."""
        check_count(self.guidance, count)

    @cached_property
    def rules(self) -> tuple[Guidance, ...]:
        """The rule of each sample, or the single one that serves all."""
        return plain_rules(self.guidance)

    @property
    def corrections(self) -> tuple[Correction, ...]:
        """Those of the rule; of samples' rules the first's, all are of the same kinds."""
        return self.rules[0].corrections

    @property
    def call_levels(self) -> CallLevels:
        """Where the calls stand, for numbers that corrections have of each."""
        ends = self.parameterization.snap(self.schedule.array())[1:]
        return CallLevels(self.sigmas, ends[self.steps], self.steps, len(ends))

    @property
    def remembers(self) -> bool:
        """Whether what a call gives depends on the calls before, beyond the state."""
        return bool(self.kept or self.adaptive) or any(correction.has_memory for correction in self.corrections)

    @property
    def calibration(self) -> Calibration | None:
        """What was measured of the rule on this run."""
        return self.guidance.calibration if isinstance(self.guidance, Guidance) else None

    @property
    def reused(self) -> np.ndarray:
        """``[N, K]`` bool, whether a direction ``c - k`` of an earlier call serves, any sample where they differ."""
        reused = (self.weights != 0) & ~self.evaluated
        return reused.any(axis=0) if self.samples else reused

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        runs: list[Run] = []
        reused = self.reused
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
    def conditions(self) -> tuple[Condition, ...]:
        """The distinct conditions of the branches; a branch's slot is its condition's index here."""
        return tuple(dict.fromkeys(branch.condition for branch in self.branches))

    @cached_property
    def draws(self) -> tuple[Draw, ...]:
        """The conditions that are drawn."""
        return tuple(condition for condition in self.conditions if isinstance(condition, Draw))

    @property
    def needs_negative(self) -> bool:
        """Whether samples need a negative prompt: for a branch without condition, or in the place of a drawn one."""
        return "uncond" in self.conditions or any(plain_condition(draw) == "uncond" for draw in self.draws)

    def choosers(self, live: tuple[int, ...]) -> tuple[ClassifierReference, ...]:
        """The draws whose classifiers are asked in a call."""
        networks = (self.branches[i].network for i in live)
        return tuple(network.draw for network in networks if isinstance(network, Chooser))

    def coefficients(self) -> np.ndarray:
        """``[..., N, 1 + K, C']`` factors of the branch outputs; they sum to one, at silent calls to zero.

        C' is 1, or C where channels differ.
        """
        weak = -(self.weights * self.evaluated)[..., None] * self._channel_factors  # [..., N, K, C']
        whole = np.where(self.silent, 0.0, 1.0)[..., None, None]
        return np.concatenate([whole - weak.sum(axis=-2, keepdims=True), weak], axis=-2)

    @cached_property
    def reuse(self) -> ReuseTables:
        """From which directions ``c - k`` of earlier calls those of a call are extrapolated; of a plan of one rule."""
        return reuse_tables(self.weights, self.evaluated, self.sigmas, self.orders, self.places)

    def reused_weights(self) -> np.ndarray:
        """``[N, K, places, C']`` weights of directions ``c - k`` that earlier calls kept; of a plan of one rule."""
        return (self.weights[..., None] * self.reuse.coefficients)[..., None] * self._channel_factors[:, None]

    @property
    def reused_channels(self) -> int:
        """C', the last dimension of :meth:`reused_weights`."""
        return self._channel_factors.shape[1]

    @property
    def _channel_factors(self) -> np.ndarray:
        """``[K, C']``, 1 where a branch guides a channel."""
        channels = self.spec.channels
        if (self.masks >= channels).all():
            return np.ones((len(self.masks), 1))
        return (np.arange(channels)[None] < self.masks[:, None]).astype(np.float64)

    def models(self, live: tuple[int, ...]) -> tuple[str, ...]:
        """The networks that run for a live set."""
        return tuple(dict.fromkeys(self.branches[i].model for i in self.outputs(live)))

    def members(self, live: tuple[int, ...], model: str) -> tuple[int, ...]:
        """The live branches that run through ``model`` and have an output."""
        return tuple(i for i in self.outputs(live) if self.branches[i].model == model)

    def outputs(self, live: tuple[int, ...]) -> tuple[int, ...]:
        """The live branches that have an output: all but a text that is joined to others, and classifiers."""
        return tuple(i for i in live if not (self.branches[i].is_text or isinstance(self.branches[i].network, Chooser)))

    def alone(self, branch: int, live: tuple[int, ...]) -> tuple[int, ...]:
        """The live set that evaluates one branch as ``live`` does: with the text that is joined there, if one is."""
        return (branch, *(i for i in live if self.branches[i].is_text))

    @property
    def dropping(self) -> tuple[int, ...]:
        """The branches that leave out blocks at random."""
        return tuple(i for i, branch in enumerate(self.branches) if isinstance(branch.network, DropBlocks))

    @property
    def gate_lists(self) -> tuple[int, int]:
        """(G, depth) of :attr:`opened`; the depth is that of the deepest network."""
        return len(self.dropping), max(spec.depth for spec in self.specs.values())

    @cached_property
    def opened(self) -> np.ndarray:
        """``[N, G, depth]``, 1 for the blocks that each branch of :attr:`dropping` keeps at a call, 0 for the others.

        Of a plan of one rule.
        """
        branches = [self.branches[i] for i in self.dropping]
        return opened_blocks(branches, [self.specs[branch.model].depth for branch in branches], self.steps, self.gate_lists[1])

    def _joined(self, live: tuple[int, ...], model: str) -> dict[int, int]:
        """The slot of the text that the rows of a slot meet beside their own: of conditional rows of the sampled network."""
        if model != "main" or not any(self.branches[i].is_text for i in live):
            return {}
        return {self.conditions.index("cond"): self.conditions.index(NEGATIVE_TEXT.condition)}

    @cached_property
    def _layouts(self) -> dict[tuple[tuple[int, ...], str], RowLayout]:
        return {}

    def layout(self, live: tuple[int, ...], model: str = "main") -> RowLayout:
        """Row blocks and layer schedule of ``model`` for a set of live branches."""
        key = (live, model)
        if key not in self._layouts:
            depth = self.specs[model].depth
            gates = {i: gate for gate, i in enumerate(self.dropping)}
            members = self.members(live, model)
            paths = tuple(branch_path(self.branches[i], self.conditions, depth, gates.get(i, NO_GATE)) for i in members)
            self._layouts[key] = RowLayout(paths, depth, self._joined(live, model))
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
            flops += spec.readout_flops(tokens) if model == "main" and self.learned_variance else 0  # the learned variance
            flops += sum(rows.active * spec.block_flops(layer, tokens) for layer, rows in enumerate(layout.layers))
            if layout.joined:
                joined = enumerate(rows.joined for rows in layout.layers)
                flops += sum(count * spec.second_text_flops(layer, tokens) for layer, count in joined)
            drawn = {slot for slot in layout.conditions if isinstance(self.conditions[slot], Draw)}
            flops += len(drawn) * spec.modulation_flops()  # that of other conditions is in a table
        flops += sum(self.classifier_flops[draw] or 0 for draw in self.choosers(live))
        return evaluations, blocks, flops

    def text_blocks(self, live: tuple[int, ...]) -> int:
        """Of texts joined to others, the blocks of one call for one sample."""
        return sum(self.layout(live, model).text_block_rows for model in self.models(live))

    def combines_early(self, live: tuple[int, ...]) -> bool:
        """Whether branches that share a head are combined before the last projection."""
        return all(self.masks[i - 1] >= self.spec.channels for i in live if i) and not self.keeps_apart(live)

    def keeps_apart(self, live: tuple[int, ...]) -> bool:
        """Whether the outputs of the live branches are needed one by one: for kept directions, corrections and classifiers."""
        if self.choosers(live):
            return True
        if self.adaptive:  # also where they have stopped, so that numbers do not depend on when the host notices
            return True
        for correction in self.corrections:
            if WHOLE <= correction.place < STEP and (correction.alone or len(self.outputs(live)) > 1 or self.kept):
                return bool(live)
        return any(i == self.reference or i in self.kept for i in live)

    @cached_property
    def cost(self) -> Cost:
        totals = np.sum([self.call_cost(live) for live in self.live], axis=0, dtype=object)
        unguided = self.calls * self.spec.forward_flops(self.height, self.width)
        texts = sum(map(self.text_blocks, self.live))
        return Cost(self.calls, int(totals[0]), int(totals[1]), int(totals[2]), float(totals[2] / unguided), texts)

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


def checked_size(spec: ModelSpec, height: int | None, width: int | None) -> tuple[int, int]:
    """A latent size that ``spec`` can cut into patches, its own where None.  Raises ``TypeError`` or ``ValueError``."""
    height = spec.height if height is None else whole_number(height, "the latent height must be a whole number")
    width = spec.width if width is None else whole_number(width, "the latent width must be a whole number")
    spec.check_size(height, width)
    return height, width
