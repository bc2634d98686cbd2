"""The published algorithm on our own modules, and every stage between it and the engine.

As published (arXiv 2603.20584 and its code), a step evaluates the conditional and the unconditional branch always, and in the
weak window the whole weak network in a pass of its own; modulation is computed in every call, branches are combined after the
projection.  Each of these can be done the engine's way instead, one :class:`Stages` field at a time, so the bench can show
what each is worth.  With all of them on, the work is the engine's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.engine.planning.branch_paths import branch_path
from segue.engine.planning.plan import Plan
from segue.engine.rules.branch import Perturb
from segue.kernels.record import REFERENCE, Kernels
from segue.models.registry import make_rows
from segue.models.rows import Path, RowLayout
from segue.models.start_rows import Clock


@dataclass(frozen=True)
class Stages:
    """What is done the engine's way (True) instead of as published (False).

    ``live``: only branches with a weight run.  ``batch``: weak branches are rows of the same batch, not a pass of their own.
    ``fork``: weak rows start at the first layer that differs.  ``table``: modulation of all calls is computed once.
    ``early``: branches are combined before the last projection.
    """

    live: bool = False
    batch: bool = False
    fork: bool = False
    table: bool = False
    early: bool = False

    def __post_init__(self):
        if self.fork and not self.batch:
            raise ValueError("fork=True needs batch=True: rows of another pass have nothing to fork from")


PUBLISHED = Stages()
ON_OUR_MODULES = "on Segue's networks: two rows always, a whole weak pass, modulation in every call; plain PyTorch, no graph"
OUR_ROWS = {  # what a rule costs without any of the stages
    "none": "on Segue's networks: one row per sample, modulation in every call; plain PyTorch, no graph",
    "cfg": "on Segue's networks: two rows per sample, modulation in every call; plain PyTorch, no graph",
    "sgg": ON_OUR_MODULES,
}
WATERFALL = {  # cumulative, in the order of the engine's documentation
    "as published": PUBLISHED,
    "+ live branches only": Stages(live=True),
    "+ branches as rows": Stages(live=True, batch=True),
    "+ prefix fork": Stages(live=True, batch=True, fork=True),
    "+ modulation table": Stages(live=True, batch=True, fork=True, table=True),
    "+ early combination": Stages(*[True] * len(fields(Stages))),
}


@dataclass(frozen=True)
class Pass:
    """One forward of one network: the branches it evaluates and its row layout over condition slots."""

    model: str
    branches: tuple[int, ...]
    layout: RowLayout


def slots(plan: Plan, stages: Stages) -> tuple[str | int, ...]:
    """Condition of every slot; without ``fork`` each perturbed branch has a slot of its own, so that it shares no layer."""
    perturbed = [branch.condition for branch in plan.branches if isinstance(branch.network, Perturb)]
    return plan.conditions if stages.fork else (*plan.conditions, *perturbed)


def passes(plan: Plan, live: tuple[int, ...], stages: Stages) -> tuple[Pass, ...]:
    """The forwards of a call with the branches ``live``, in order."""
    whole = [i for i, b in enumerate(plan.branches) if b.condition != "cond" and b.network is None and b.model == "main"]
    evaluated = live if stages.live else tuple(sorted({*live, *whole}))
    groups: dict[Any, list[int]] = {}
    for i in evaluated:
        branch = plan.branches[i]
        apart = isinstance(branch.network, Perturb) and not stages.batch
        groups.setdefault(("alone", i) if apart else branch.model, []).append(i)
    made = []
    for members in groups.values():
        model = plan.branches[members[0]].model
        paths = tuple(_path(plan, i, stages) for i in members)
        made.append(Pass(model, tuple(members), RowLayout(paths, plan.specs[model].depth)))
    return tuple(made)


def _path(plan: Plan, index: int, stages: Stages) -> Path:
    branch = plan.branches[index]
    path = branch_path(branch, plan.conditions, plan.specs[branch.model].depth)
    if stages.fork or not isinstance(branch.network, Perturb):
        return path
    rank = sum(isinstance(other.network, Perturb) for other in plan.branches[:index])
    return Path(len(plan.conditions) + rank, path.operations)


def stage_flops(plan: Plan, stages: Stages) -> int:
    """FLOPs of a run for one sample, counted as ``Plan.cost`` counts: without modulation, which both compute as often."""
    total = 0
    for live in plan.live:
        for one in passes(plan, live, stages):
            spec = plan.specs[one.model]
            tokens = spec.tokens(plan.height, plan.width)
            total += spec.embed_flops(tokens) + one.layout.projections(early=stages.early) * spec.readout_flops(tokens)
            total += sum(rows.active * spec.block_flops(layer, tokens) for layer, rows in enumerate(one.layout.layers))
    return total


class StagedSampler:
    """Runs a plan with the chosen stages on the engine's networks and kernels; deterministic solvers only."""

    def __init__(
        self, models: Mapping[str, nn.Module], plan: Plan, batch: int, stages: Stages = PUBLISHED, kernels: Kernels = REFERENCE
    ):
        if plan.dropping:
            raise ValueError("the published algorithm leaves out the same blocks at every step")
        if plan.solver.stochastic:
            raise ValueError(f"the staged sampler has no in-loop noise, got the solver {plan.solver.name!r}")
        self.plan, self.batch, self.stages, self.kernels = plan, batch, stages, kernels
        self.slots = slots(plan, stages)
        self.passes = {live: passes(plan, live, stages) for live in plan.live_sets}
        times, index = np.unique(plan.parameterization.network_time(plan.sigmas), return_inverse=True)
        self.times, self.time_index = torch.from_numpy(times[::-1].copy()), len(times) - 1 - index  # in the order of the calls
        self.rows = {name: self._rows(models[name], name) for name in dict.fromkeys(b.model for b in plan.branches)}
        device = next(models["main"].parameters()).device
        self.solver_table = torch.from_numpy(plan.table).to(device, torch.float32)
        self.coefficients = self._coefficients(device)

    def _rows(self, model: nn.Module, name: str):
        used = [one for made in self.passes.values() for one in made if one.model == name]
        spec = self.plan.spec
        return make_rows(
            model,
            self.batch,
            self.plan.height,
            self.plan.width,
            row_blocks=max(len(one.layout.blocks) for one in used),
            slots=len(self.slots),
            times=len(self.times) if self.stages.table else 1,
            conditions=spec.distinct_conditions(self.slots, self.batch),
            kernels=self.kernels,
            **({"text_tokens": spec.text_tokens} if spec.text_tokens else {}),
        )

    def _coefficients(self, device: torch.device) -> Tensor:
        """[N, 1 + K] where branches combine early, else [N, 1 + K, C]."""
        table = torch.from_numpy(self.plan.coefficients()).to(device, torch.float32)
        if self.stages.early and table.shape[-1] == 1:
            return table[..., 0]
        return table.expand(-1, -1, self.plan.spec.channels).contiguous()

    @torch.no_grad()
    def run(self, conditions: Mapping[str | int, Any], state: Tensor) -> Tensor:
        """The sample [B, C, H, W] fp32; ``conditions`` and ``state`` as for :meth:`EngineCore.prepare`."""
        per_slot = [conditions[condition] for condition in self.slots]
        x = state.to(self.solver_table.device, torch.float32, copy=True)
        history = torch.zeros_like(x)
        further = self.plan.solver.earlier
        earlier = x.new_zeros(len(x), further, *x.shape[1:]) if further else None
        if self.stages.table:
            self._load(self.times, per_slot)
        for call, live in enumerate(self.plan.live):
            index = int(self.time_index[call])
            if not self.stages.table:
                self._load(self.times[index : index + 1], per_slot)
                index = 0
            row = self.solver_table[call].expand(self.batch, -1)
            output = self._output(call, live, x * row[:, 0, None, None, None], index)
            self.kernels.solver_update(x, output, history, None, row[:, 1:], earlier=earlier)
        return x

    def _load(self, times: Tensor, per_slot: list[Any]) -> None:
        for rows in self.rows.values():
            rows.load(times, per_slot)

    def _output(self, call: int, live: tuple[int, ...], x: Tensor, index: int) -> Tensor:
        times = torch.arange(index + 1, device=x.device)
        clock = Clock(times[index:].expand(self.batch), times)
        total = None
        for one in self.passes[live]:
            chosen = self.coefficients[call, list(one.branches)].expand(self.batch, *[-1] * (self.coefficients.dim() - 1))
            self.rows[one.model].look_ahead(np.full(self.batch, index))
            part = self.rows[one.model].forward(x, clock, one.layout, chosen)
            total = part if total is None else total.add_(part)
        return total
