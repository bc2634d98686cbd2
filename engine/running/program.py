"""Plan + networks -> static device tables and the step function.

A :class:`Program` is made for shapes (batch, latent size, branches, capacity) and loaded with numbers (tables, conditions,
seeds).  ``step(live)`` takes nothing else and returns nothing: it reads the per-sample call counter, gathers its table
rows, runs the live rows, combines, updates the state and advances the counter.  Every buffer it touches across calls is
allocated here, so a step can be captured once and replayed.
"""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.kernels.normalized_attention import NEUTRAL
from segue.kernels.record import REFERENCE, Kernels
from segue.models.read_rows import StateUpdate, chosen
from segue.models.registry import make_rows
from segue.models.rows import RowLayout
from segue.models.start_rows import Clock
from segue.models.weight_watch import WeightWatch

from ..planning.choices import source
from ..planning.classifiers import probed, resolved_classifier
from ..planning.plan import Plan
from ..planning.solver_rows import IDLE, HostStep
from ..rules.branch import NEGATIVE_TEXT, Branch
from ..rules.drawn import ClassifierReference
from .call_table import CallTable
from .combination import Combination, put
from .draws import Draws
from .graph import WARM_UP_STEPS, CapturedStep, StepGraphs
from .program_key import ProgramKey


class Program:
    """Static buffers and the step function for B samples; state ``x`` [B, C, H, W] is fp32, in flow coordinates."""

    # outside inference mode: its tensors could not be written to later, outside it
    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        key: ProgramKey,
        plan: Plan,
        models: Mapping[str, nn.Module],
        device: torch.device,
        kernels: Kernels = REFERENCE,
        decode: Callable[[Tensor], Tensor] | None = None,
    ):
        """``decode`` gives pictures of latents to a classifier that chooses labels by pictures.

        Without ``models`` there are no rows here: the branches are evaluated elsewhere, for :meth:`step_with`.
        """
        self.key, self.models, self.device, self.kernels = key, models, device, kernels
        shape = (key.batch, plan.spec.channels, key.height, key.width)
        channels = plan.spec.channels if any(mask < plan.spec.channels for mask in key.masks) else 1
        single: dict[str, Any] = {"dtype": torch.float32, "device": device}  # whatever the defaults of the caller are
        self.x = torch.zeros(shape, **single)
        self.history = torch.zeros(shape, **single)
        self.earlier = torch.zeros(key.batch, key.earlier, *shape[1:], **single) if key.earlier else None
        self.call = torch.zeros(key.batch, dtype=torch.int64, device=device)
        self.seeds = torch.zeros(key.batch, dtype=torch.int64, device=device)
        entries = key.calls + WARM_UP_STEPS - 1  # a capture at the last call warms up beyond it
        table = partial(CallTable, key.shared, key.batch, entries, device=device)
        self.columns, self.coefficients = plan.table.shape[1], (len(key.branches), channels)
        self.call_table = table(self.columns + math.prod(self.coefficients))  # the solver's row, then coefficients
        self.time_table = table(1, dtype=torch.int64)
        self.spread_table = table(int(key.learned_variance))
        self.attention_table = table(len(NEUTRAL) if NEGATIVE_TEXT in key.branches else 0)
        self.gate_lists = plan.gate_lists
        self.opened_table = table(math.prod(self.gate_lists))
        self.combination = Combination(plan, shape, table, device, kernels)
        classifiers = {draw: resolved_classifier(draw.classifier, plan.spec, device, decode) for draw in plan.classifier_flops}
        for draw, classifier in classifiers.items():
            probed(classifier, draw, plan.spec, shape[2:], device)
        own_table = partial(CallTable, False, key.batch, entries, device=device)
        self.draws = Draws(plan, key.batch, table, own_table, classifiers, device, kernels)
        drawn = {plan.conditions.index(draw): labels for draw, labels in zip(plan.draws, self.draws.labels, strict=True)}
        classes = {slot: len(plan.conditions[slot].classes.names) for slot in drawn if plan.spec.text_tokens}
        self.rows = {}
        every = tuple(range(len(key.branches)))
        for name in plan.models(every) if models else ():
            layout = plan.layout(every, name)  # all branches at once: no live set needs more
            self.rows[name] = make_rows(
                models[name],
                key.batch,
                key.height,
                key.width,
                row_blocks=len(layout.blocks),
                slots=len(plan.conditions),
                times=key.calls,
                conditions=key.conditions,
                kernels=kernels,
                **({"text_tokens": key.text_tokens} if key.text_tokens else {}),
                **({"text_blocks": sum(layout.texts)} if layout.joined else {}),
                **({"variance": True} if key.learned_variance and name == "main" else {}),
                **({"gated": True} if plan.dropping else {}),
                **({"drawn": drawn} if drawn else {}),
                **({"classes": classes} if classes else {}),
            )
        self.plan = plan
        self.host_step: HostStep | None = None
        self.graphs: StepGraphs | None = None
        self._places: list[int] = []
        self._watches: list[WeightWatch] = []
        self._place = np.zeros(key.batch, dtype=np.int64)  # the call of every sample, as far as it is known without asking
        self._time_index: list[np.ndarray] = []  # of the network time at each call, of all samples or of each
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def use_graphs(self, capture: Callable[[Callable[[], None]], CapturedStep]) -> None:
        """Capture steps with ``capture`` and replay them from now on."""
        self.graphs = StepGraphs(weakref.proxy(self), capture)  # a cycle would keep the buffers until a garbage collection

    def advance(self, live: tuple[int, ...]) -> None:
        """:meth:`step`, replayed from its graph where graphs are in use, then the solver's own step if it is no table."""
        before = None if self.host_step is None else self.x.clone()
        if self.graphs is None:
            self.step(live)
        else:
            self.look_ahead()
            self.graphs.advance(live)
            self._place += 1
        if before is not None:
            self.x.copy_(self.host_step(before, self.x.clone(), self._noise))

    def _noise(self, draw: int) -> Tensor:
        """Unit normal noise [B, C, H, W] fp32 of the samples' seeds, another one for each number ``draw``."""
        noise = self.kernels.normal_noise(self.seeds, torch.full_like(self.seeds, draw), self.x[0].numel())
        return noise.view_as(self.x)

    @torch.inference_mode(False)  # as the constructor: rows make some of their tensors here
    @torch.no_grad()
    def load(self, plan: Plan, noise: Tensor, conditions: Mapping[str | int, Any], seeds: list[int]) -> None:
        """Put a run into the buffers; ``plan`` must have this program's key.

        noise [B, C, H, W], the state at the first noise level; conditions: what the model's rows take for each condition of
        the plan (labels [B] int64 for class-conditional models); seeds: B integers in [0, 2^64), kept by their 64 bits.
        """
        if not self.key.serves(ProgramKey.of(plan, self.key.batch)):
            raise ValueError("this program was built for other branches or shapes than the plan's")
        self._follow_stream()
        self.plan, self.host_step = plan, plan.solver.begin()
        self.x.copy_(noise)
        for memory in self.memory():
            memory.zero_()
        self.place(np.zeros(len(self.call), dtype=np.int64))
        self.seeds.copy_(torch.tensor(seeds, dtype=torch.uint64, device="cpu").view(torch.int64))
        samples = plan.samples or (plan,)
        rows = [np.hstack([own.table, own.coefficients().reshape(own.calls, -1)]) for own in samples]
        self.call_table.fill(rows, beyond=[*IDLE, *[0.0] * (rows[0].shape[1] - len(IDLE))])
        self.spread_table.fill([own.spreads[:, : int(self.key.learned_variance)] for own in samples])
        self.attention_table.fill(
            [own.attention[:, : self.attention_table.rows.shape[2]] for own in samples],
            beyond=NEUTRAL[: self.attention_table.rows.shape[2]],
        )
        self.opened_table.fill([own.opened.reshape(own.calls, -1) for own in samples], beyond=1.0)
        self.combination.load(samples)
        self.draws.load(samples, conditions, seeds)
        self._slots = [_weight_slot(branch, plan) for branch in plan.branches]
        self._follow_places()
        self.load_times(plan.times, conditions)

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_times(self, times: Sequence[np.ndarray], conditions: Mapping[str | int, Any]) -> None:
        """Call the network at ``times`` [N], one for every call of all samples or of each, and compute what depends on them.

        That is what depends on times and conditions alone.
        """
        distinct = np.unique(np.concatenate(times))
        own = [np.searchsorted(distinct, values)[:, None] for values in times]
        if times[0][0] > times[0][-1]:  # in the order of the calls
            distinct, own = distinct[::-1].copy(), [len(distinct) - 1 - values for values in own]
        self.time_table.fill(own)
        self._time_index = [values[:, 0] for values in own]
        self._given = torch.from_numpy(distinct), [conditions[condition].detach() for condition in self.plan.conditions]
        self._load_rows()

    def _load_rows(self) -> None:
        for rows in self.rows.values():
            rows.load(*self._given)
        self.look_ahead()
        self._watches = [WeightWatch(rows.remembered) for rows in self.rows.values()]

    @torch.inference_mode(False)
    @torch.no_grad()
    def follow_weights(self, values: bool = True) -> None:
        """Compute anew what the run under way has computed from weights that are no longer what they were.

        ``values``: see :class:`WeightWatch`.
        """
        if not all(watch.unchanged(values) for watch in self._watches):
            self._follow_places()
            self._load_rows()

    def _follow_places(self) -> None:
        """Drop the graphs where weights lie elsewhere than they read them."""
        places = [tensor.data_ptr() for model in self.models.values() for tensor in (*model.parameters(), *model.buffers())]
        if self.graphs is not None and places != self._places:
            self.graphs.steps.clear()
        self._places = places

    def _follow_stream(self) -> None:
        """Let the current stream wait for the run before, if that was on another: threads may have streams of their own."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            if current != self._stream:
                current.wait_stream(self._stream)
            self._stream = current

    def place(self, calls: np.ndarray) -> None:
        """Put every sample at its call, [B] int64."""
        put(self.call, calls)
        self._place = calls.copy()

    def count_call(self) -> None:
        """The samples are past a call that was made elsewhere."""
        self.call += 1
        self._place += 1

    @torch.no_grad()
    def look_ahead(self) -> None:
        """Let the networks compute for coming calls what they hold of a few only."""
        if not self._time_index:
            return
        own = self._time_index * (1 if len(self._time_index) > 1 else len(self._place))
        time = np.array([index[min(call, len(index) - 1)] for index, call in zip(own, self._place.tolist(), strict=True)])
        for rows in self.rows.values():
            rows.look_ahead(time)

    def step(self, live: tuple[int, ...]) -> None:
        """One network call for every sample, with the branches ``live`` of the plan."""
        self.look_ahead()
        self.step_on_device(live)
        self._place += 1

    @torch.no_grad()
    def step_on_device(self, live: tuple[int, ...]) -> None:
        """What a step is on the device, and what is captured of it: nothing here asks the host where the samples are."""
        row, coefficients = self.looked_up()
        update = self._update(row)
        output = self._output(live, row[:, 0], coefficients, None if self.key.learned_variance else update)
        if output is not None:
            noise = self._with_learned_variance(update.noise) if self.key.learned_variance else update.noise
            self.kernels.solver_update(update.x, output, update.history, noise, update.row, update.call, update.earlier)

    @torch.no_grad()
    def step_with(self, outputs: Mapping[int, Tensor]) -> None:
        """As :meth:`step`, where the ``outputs`` [B, C, H, W] fp32 of the live branches were evaluated elsewhere."""
        row, coefficients = self.looked_up()
        update = self._update(row)
        if self.plan.keeps_apart(tuple(outputs)):
            output = self.combination.combine(self.x, outputs, coefficients, self.call)
        else:
            output = torch.zeros_like(self.x)
            for branch, own in outputs.items():
                output.addcmul_(coefficients[:, branch, :, None, None], own)
            if self.key.kept and outputs:
                output = self.combination.reused.added_to(output, self.call)
        self.kernels.solver_update(update.x, output, update.history, update.noise, update.row, update.call, update.earlier)
        self._place += 1

    def _update(self, row: Tensor) -> StateUpdate:
        """The solver's update of this call, whose row is [B, 7 + earlier]."""
        noise = None
        if self.key.stochastic:
            noise = self.kernels.normal_noise(self.seeds, self.call, self.x[0].numel()).view_as(self.x)
        return StateUpdate(self.x, self.history, row[:, 1:], noise, self.call, self.earlier)

    def _with_learned_variance(self, noise: Tensor) -> Tensor:
        """Noise [B, C, H, W] times what each element's deviation is of the smallest, by the conditional row of this call."""
        spread = self.spread_table.at(self.kernels, self.call)[:, :, None, None]
        return noise * torch.exp(spread * (self.rows["main"].variance + 1) / 2)

    def looked_up(self) -> tuple[Tensor, Tensor]:
        """The solver's row [B, 7 + earlier] and the branches' coefficients [B, branches, C'] at each sample's call."""
        found = self.call_table.at(self.kernels, self.call)
        return found[:, : self.columns], found[:, self.columns :].unflatten(1, self.coefficients)

    def times(self) -> Tensor:
        """The network time of each sample's call, [B] fp32."""
        return self._given[0].to(self.device, torch.float32)[self._clock().time_index(self.kernels)]

    def _clock(self) -> Clock:
        return Clock(self.call, self.time_table.lookup[..., 0])

    def _output(self, live: tuple[int, ...], scale: Tensor, coefficients: Tensor, update: StateUpdate | None) -> Tensor | None:
        """The network's output under the rule, [B, C, H, W] fp32; None where the rows made the ``update`` themselves."""
        if not live:
            return torch.zeros_like(self.x)
        if self.plan.choosers(live):
            return self._chosen_output(live, scale, coefficients)
        if len(self.draws):
            coefficients = self.begin_draws(coefficients)
        if self.plan.keeps_apart(live):
            outputs = dict(zip(self.plan.outputs(live), self._branch_outputs(live, scale), strict=True))
            return self.combination.combine(self.x, outputs, coefficients, self.call)
        if self.key.kept:
            return self.combination.reused.added_to(self.guided_output(live, scale, coefficients), self.call)
        return self.guided_output(live, scale, coefficients, update)

    def _chosen_output(self, live: tuple[int, ...], scale: Tensor, coefficients: Tensor) -> Tensor:
        """As :meth:`_output` of a call that asks classifiers: before the rows of what they choose, or after all (``lag``)."""
        plan, choosers = self.plan, self.plan.choosers(live)
        weighed = self.begin_draws(coefficients)
        waiting = {draw for draw in choosers if not draw.lag}
        later = [i for i in live if plan.branches[i].condition in waiting]
        rows, texts = plan.outputs(live), tuple(i for i in live if plan.branches[i].is_text)
        first, second = ((*(i for i in rows if (i in later) == late), *texts) for late in (False, True))
        outputs = dict(zip(plan.outputs(first), self._branch_outputs(first, scale), strict=True))
        self.choose([draw for draw in choosers if not draw.lag], outputs, self.x)
        if later:
            weighed = self.begin_draws(coefficients)
            outputs |= zip(plan.outputs(second), self._branch_outputs(second, scale), strict=True)
        guided = self.combination.combine(self.x, {i: outputs[i] for i in rows}, weighed, self.call)
        self.choose([draw for draw in choosers if draw.lag], outputs, self.x)
        return guided

    def begin_draws(self, coefficients: Tensor) -> Tensor:
        """Put what was chosen before into the labels of this call, and into its ``coefficients`` [B, branches, C']."""
        self.draws.begin(self.call)
        return self.draws.weighed(coefficients, self._slots)

    def choose(self, asked: Sequence[ClassifierReference], outputs: Mapping[int, Tensor], state: Tensor) -> None:
        """Let the classifiers of draws choose by the outputs of the branches that they look at, at ``state`` [B, C, H, W]."""
        for draw in asked:
            self.draws.choose(draw, state, outputs[self.plan.branches.index(source(draw))], self.call)

    def guided_output(
        self, live: tuple[int, ...], scale: Tensor, coefficients: Tensor | None = None, update: StateUpdate | None = None
    ) -> Tensor | None:
        """``sum_k c_k o_k`` over the live branches at the current state, [B, C, H, W] fp32, in the network's own output.

        ``scale`` [B] multiplies the state; ``coefficients`` [B, branches, C'] default to the table's row of each sample.
        None where the rows of a single network made the ``update`` of the state themselves.
        """
        if coefficients is None:
            _, coefficients = self.looked_up()
        total, models = None, self.plan.models(live)
        for model in models:
            factors = chosen(coefficients, self.plan.members(live, model))
            if self.plan.combines_early(live):
                factors = factors[..., 0]
            part = self._forward(live, model, scale, factors, update if len(models) == 1 else None)
            total = part if total is None else total.add_(part)
        return total

    def _forward(
        self, live: tuple[int, ...], model: str, scale: Tensor, coefficients: Tensor | None, update: StateUpdate | None = None
    ) -> Tensor | None:
        """One network's rows at the current state, which ``scale`` [B] turns into the network's convention."""
        scale = scale if self.plan.parameterization.scaled else None
        layout = self.plan.layout(live, model)
        return self.rows[model].forward(
            self.x, self._clock(), layout, coefficients, update, scale, **self.numbers_inside(layout)
        )

    def numbers_inside(self, layout: RowLayout) -> dict[str, Tensor]:
        """What the rows of a layout take of the rule itself.

        ``normalized`` [B, 3], numbers of NAG, where a text is joined to some; ``opened`` [B, G, depth], the blocks that the
        call keeps, where some leave out blocks.
        """
        inside = {"normalized": self.attention_table.at(self.kernels, self.call)} if layout.joined else {}
        if layout.gated:
            opened = self.opened_table.at(self.kernels, self.call).unflatten(1, self.gate_lists)
            inside["opened"] = opened[:, :, : layout.depth]
        return inside

    def branch_outputs(self, live: tuple[int, ...]) -> list[Tensor]:
        """The outputs of the live branches that have one at the current state, each [B, C, H, W] fp32."""
        self.look_ahead()
        return self._branch_outputs(live, self.looked_up()[0][:, 0])

    def _branch_outputs(self, live: tuple[int, ...], scale: Tensor) -> list[Tensor]:
        outputs: dict[int, Tensor] = {}
        for model in self.plan.models(live):
            outputs |= dict(zip(self.plan.members(live, model), self._forward(live, model, scale, None), strict=True))
        return [outputs[i] for i in self.plan.outputs(live)]

    def branch_output(self, branch: int, scale: Tensor, live: tuple[int, ...] = ()) -> Tensor:
        """The output of one branch alone, [B, C, H, W] fp32, as in a call with the branches ``live``."""
        shape = (self.key.batch, *self.coefficients)
        self.look_ahead()
        return self.guided_output(
            self.plan.alone(branch, live), scale, torch.ones(shape, dtype=torch.float32, device=self.device)
        )

    def memory(self) -> tuple[Tensor, ...]:
        """What the solver's rows leave for those after them."""
        return (self.history,) if self.earlier is None else (self.history, self.earlier)

    def state(self) -> tuple[Tensor, ...]:
        """What a step changes: the sample, what the solver and the guidance left behind, the call counter."""
        return self.x, *self.memory(), self.call, *self.rule_memory()

    def rule_memory(self) -> tuple[Tensor, ...]:
        """What the guidance leaves for the calls after it."""
        return *self.combination.memory(), *self.draws.memory()

    def forget(self, samples: np.ndarray) -> None:
        """Let the guidance of ``samples`` [B] bool start anew; see :meth:`.combination.Combination.forget`."""
        self.combination.forget(samples, self.call)
        self.draws.forget(self.combination.reused.fresh)


def _weight_slot(branch: Branch, plan: Plan) -> int | None:
    """Which draw chooses what a branch weighs, None where none does."""
    return plan.draws.index(branch.condition) if isinstance(branch.condition, ClassifierReference) else None
