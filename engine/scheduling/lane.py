"""Runs of one latent size that share forwards: each in a place of its own, at a call of its own, under a rule of its own.

A tick makes one forward of every network for all runs in it.  The steps of linear rules are part of it; what another rule does
with the outputs of its branches is its own program's work, the same as of a run alone.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from segue.kernels.record import REFERENCE, Kernels
from segue.models.mmdit import MMDiT
from segue.models.registry import make_shared_rows
from segue.models.rows import FULL
from segue.models.shared_layout import ConditionPlace, RunRows, SharedLayout, SharedRowsOfCall, shared_rows
from segue.models.shared_rows import SharedRows
from segue.models.sit import SiT
from segue.models.weight_watch import WeightWatch

from ..planning.plan import Plan
from ..rules.branch import Exit, JoinedText, Perturb
from ..rules.drawn import Draw
from ..running.graph import CapturedStep
from .drawing import Drawing
from .lane_runs import LaneRun, LinearRun, ProgramRun
from .linear_steps import STATES, LinearSteps, StepShape, is_linear
from .memory import bytes_of, passed_on
from .sizes import Sizes

CONDITIONS = 4  # of one run
MOST_GRAPHS = 128  # of a lane: requests choose layers, and with them layouts
MOST_KINDS = 4  # groups of rows in one tick that are perturbed or meet two texts; runs with others wait for the next
Capture = Callable[[Callable[[], None]], CapturedStep]
Group = tuple[str, int, tuple[str, ...], bool]  # of rows: network, and the kind of a row block, see RowLayout.kinds


def networks_of(plan: Plan) -> tuple[str, ...]:
    """The names of those that a run calls."""
    return plan.models(tuple(range(len(plan.branches))))


def why_alone(plan: Plan, models: Mapping[str, nn.Module]) -> str:
    """Why a run cannot share forwards; empty where it can."""
    for branch in plan.branches:
        if isinstance(branch.condition, Draw):
            return f"the labels of {branch} are drawn on the device at every call"
        if not isinstance(branch.network, Perturb | Exit | JoinedText | None):
            return f"the branch {branch} needs a forward of its own kind"
    for name in networks_of(plan):
        if not isinstance(models[name], SiT | MMDiT):
            return f"the network {name!r} runs through modules of another library"
    if len(plan.conditions) > CONDITIONS:
        return f"it has {len(plan.conditions)} conditions, and a run that shares forwards up to {CONDITIONS}"
    if plan.learned_variance:
        return f"its solver {plan.solver.name} reads a variance from the network"
    if plan.solver.begin() is not None:
        return f"the steps of its solver {plan.solver.name} are made on the host"
    return ""


def why_too_many(plan: Plan, sizes: Sizes) -> str:
    """Why the rows of a run that could share forwards do not fit into one of these ``sizes``; empty where they do."""
    for live in plan.live_sets:
        groups = _groups(plan, live)
        if not _fit(groups, sizes):
            rows = {group: count for group, count in groups.items() if group[2]}
            return f"one of its calls has {sum(rows.values())} rows of {len(rows)} kinds"
    return ""


@dataclass(frozen=True)
class RowCount:
    """Rows of the forwards of a tick: those that runs needed, and with the padding."""

    used: int = 0
    run: int = 0

    def __add__(self, other: "RowCount") -> "RowCount":
        return RowCount(self.used + other.used, self.run + other.run)


class Lane:
    """Places for runs on latents of one size, and of one prompt length; see :func:`why_alone` for which can be here.

    Not for several threads at once.
    """

    @torch.inference_mode(False)  # as programs: their tensors are written to outside it
    @torch.no_grad()
    def __init__(
        self,
        models: Mapping[str, nn.Module],
        plan: Plan,
        places: int,
        sizes: Sizes,
        device: torch.device,
        kernels: Kernels,
        capture: Capture | None = None,
    ):
        """``places`` runs at once, of the size of ``plan``; ``capture`` as of :meth:`.Program.use_graphs`."""
        spec = plan.spec
        self.models, self.sizes, self.device, self.kernels, self._capture = models, sizes, device, kernels, capture
        self.height, self.width, self.text_tokens = plan.height, plan.width, spec.text_tokens
        self.taken = 0  # bytes, as far as they were counted before
        shape = (places + 1, spec.channels, plan.height, plan.width)  # the last one is for rows that nobody reads
        self.states = torch.zeros(shape, dtype=torch.float32, device=device)
        self.networks: dict[str, SharedRows] = {}
        self.linear = LinearSteps(self.states, sizes.largest, kernels)
        self.graphs: dict[tuple[str, SharedLayout, StepShape | None], CapturedStep] = {}
        self._free = list(range(places))
        self._watches: dict[str, WeightWatch] = {}

    @staticmethod
    def memory(
        models: Mapping[str, nn.Module], plan: Plan, places: int, sizes: Sizes, names: Collection[str] | None = None
    ) -> int:
        """The bytes that a lane takes for runs of the size of ``plan``, with what the blocks of its networks pass on.

        Its networks are ``names``, by default those of the plan.
        """
        height, width = plan.height, plan.width
        total = 4 * STATES * (places + 1) * plan.spec.channels * height * width
        for name in networks_of(plan) if names is None else names:
            network = models[name]
            total += bytes_of(partial(make_lane_rows, network, places, sizes, plan))
            element = next(network.parameters()).element_size()
            total += passed_on(network.spec, sizes.rows * (network.spec.tokens(height, width) + plan.spec.text_tokens), element)
        return total

    # --- runs come and go ----------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Places without a run."""
        return len(self._free)

    def holds(self, plan: Plan) -> bool:
        """Whether runs of this plan's size are at home here."""
        return (plan.height, plan.width, plan.spec.text_tokens) == (self.height, self.width, self.text_tokens)

    @torch.inference_mode(False)
    @torch.no_grad()
    def join(self, drawing: Drawing) -> LaneRun:
        """Let a run take a free place."""
        place, plan = self._free[0], drawing.plan
        for name in networks_of(plan):
            rows = self.networks[name] if name in self.networks else self._network(name, plan)
            rows.begin(place, plan.times[0], [drawing.start.conditions[condition] for condition in plan.conditions])
        if is_linear(plan):
            self.linear.begin(place)
            run: LaneRun = LinearRun(drawing, place, self.states, self.linear)
        else:
            run = ProgramRun(drawing, place, self.states, self.kernels)
        self._free.pop(0)
        return run

    def leave(self, run: LaneRun) -> None:
        """Free a run's place."""
        run.leave()
        self._free.append(run.place)

    def _network(self, name: str, plan: Plan) -> SharedRows:
        rows = make_lane_rows(self.models[name], len(self.states) - 1, self.sizes, plan, self.kernels)
        self.networks[name], self._watches[name] = rows, WeightWatch(rows.remembered)
        return rows

    # --- ticks ---------------------------------------------------------------------------------------------------------

    def choose(self, runs: Sequence[LaneRun]) -> list[LaneRun]:
        """Those of ``runs``, the first ones first, whose rows and steps fit into one tick; the others wait."""
        chosen: list[LaneRun] = []
        together: Counter[Group] = Counter()
        for run in runs:
            trial = together + _groups(run.plan, run.live)
            if len(chosen) < self.sizes.largest and _fit(trial, self.sizes):
                chosen.append(run)
                together = trial
        return chosen

    @torch.inference_mode(False)
    @torch.no_grad()
    def tick(self, runs: Sequence[LaneRun]) -> tuple[RowCount, dict[LaneRun, Exception]]:
        """Make the next call of all ``runs``, which :meth:`choose` found to fit; also returns those whose step failed."""
        live = {run: run.live for run in runs}
        outputs: dict[LaneRun, dict[int, Tensor]] = {run: {} for run in runs}
        count = RowCount()
        for name in dict.fromkeys(name for run in runs for name in run.plan.models(live[run])):
            members = {run: own for run in runs if (own := run.plan.members(live[run], name))}
            found, rows = self._forward(name, {run: live[run] for run in members})
            for run, places in zip(members, found.outputs, strict=True):
                network = self.networks[name].outputs
                outputs[run] |= {i: network[at : at + 1] for i, at in zip(members[run], places, strict=True)}
            count += rows
        failed: dict[LaneRun, Exception] = {}
        for run in runs:
            if isinstance(run, ProgramRun):
                try:
                    run.step({branch: outputs[run][branch] for branch in run.plan.outputs(live[run])})
                except Exception as error:  # of its own rule or solver: the others go on
                    failed[run] = error
            run.call += 1
        return count, failed

    def _forward(self, name: str, live: Mapping[LaneRun, tuple[int, ...]]) -> tuple[SharedRowsOfCall, RowCount]:
        """Run a network over the live branches of runs, and make the steps of those that are linear."""
        network = self.networks[name]
        if not self._watches[name].unchanged(values=False):
            network.follow()
            self._watches[name] = WeightWatch(network.remembered)
        for run in live:
            network.look_ahead(run.place, run.call)
        wanted = [_run_rows(network, run, own, name) for run, own in live.items()]
        rows = shared_rows(wanted, self.models[name].spec.depth, len(self.states) - 1, self.sizes.padded)
        network.put(rows)
        steps = [run.step(places) for run, places in zip(live, rows.outputs, strict=True) if isinstance(run, LinearRun)]
        shape = self.linear.put(steps, self.sizes.padded(len(steps))) if steps else None
        self._run(name, rows.layout, shape)
        return rows, RowCount(rows.used, rows.layout.rows)

    def _run(self, name: str, layout: SharedLayout, shape: StepShape | None) -> None:
        """One forward with the steps that need nothing else, on CUDA replayed from its graph."""
        network = self.networks[name]

        def forward() -> None:
            network.forward(self.states, layout)
            if shape is not None:
                self.linear.apply(self.states, network.outputs, shape)

        if self._capture is None:
            forward()
            return
        key = name, layout, shape
        graph = self.graphs.pop(key, None) or self._captured(self._capture, forward)
        self.graphs[key] = graph  # last: the most recently used
        if len(self.graphs) > MOST_GRAPHS:
            del self.graphs[next(iter(self.graphs))]
        graph.replay()

    def _captured(self, capture: Capture, forward: Callable[[], None]) -> CapturedStep:
        """Warm-up makes the steps for real, so states are put back afterwards."""
        state = self.states, self.linear.history, self.linear.earlier
        saved = [tensor.clone() for tensor in state]
        try:
            return capture(forward)
        finally:
            for tensor, value in zip(state, saved, strict=True):
                tensor.copy_(value)


def make_lane_rows(network: nn.Module, places: int, sizes: Sizes, plan: Plan, kernels: Kernels = REFERENCE) -> SharedRows:
    """The rows of one network of a lane for runs of the size of ``plan``."""
    length = {"text_tokens": plan.spec.text_tokens} if isinstance(network, MMDiT) else {}
    shape = places, CONDITIONS, sizes.rows, plan.height, plan.width
    return make_shared_rows(network, *shape, kernels=kernels, **length)


def _groups(plan: Plan, live: tuple[int, ...]) -> "Counter[Group]":
    """How many rows of each group a call of one run has; without operations: how many are read early after a layer."""
    groups: Counter[Group] = Counter()
    for name in plan.models(live):
        layout = plan.layout(live, name)
        groups.update((name, *kind) for kind in layout.kinds)
        groups.update((name, read.layer, (), False) for read in layout.readouts if read.layer < layout.depth)
    return groups


def _fit(groups: "Counter[Group]", sizes: Sizes) -> bool:
    """Whether rows of these groups are of one forward."""
    if any(count > sizes.largest for count in groups.values()):
        return False
    if sum(joined or bool(set(operations) - {FULL}) for _, _, operations, joined in groups) > MOST_KINDS:
        return False
    rows, reads = Counter[str](), Counter[str]()
    for (name, _, operations, joined), count in groups.items():
        (rows if operations else reads)[name] += sizes.padded(count) * (1 + joined)  # there is room for a text of each row
    return all(rows[name] <= sizes.rows and rows[name] + reads[name] <= 2 * sizes.rows for name in rows)


def _run_rows(network: SharedRows, run: LaneRun, live: tuple[int, ...], name: str) -> RunRows:
    layout, table, place, call = run.plan.layout(live, name), network.table, run.place, run.call

    def of(condition: int) -> ConditionPlace:
        return ConditionPlace(table.entry(place, condition, call), place * table.conditions + condition)

    conditions = tuple(tuple(map(of, slots)) for slots in layout.text_slots)
    return RunRows(layout, place, float(run.plan.table[call, 0]), conditions, tuple(map(float, run.plan.attention[call])))
