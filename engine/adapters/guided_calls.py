"""The guided velocity at the calls that a loop of diffusers makes: network, engine and run beside a live SD3 transformer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.models.mmdit import TextCondition
from segue.models.module_rows import ModuleNetwork

from ..core import EngineCore
from ..planning.plan import Plan
from ..planning.plan_warnings import warn_of
from ..rules.batch import RulesLike
from ..velocity import GuidedVelocity
from .live_transformer import LiveTransformer
from .scheduler_calls import SchedulerCalls
from .transformer_call import Remembered, TransformerCall


@dataclass(eq=False)
class Run:
    """One run of the pipeline: the inputs it started with, the calls its scheduler makes, and the velocity at them."""

    start: Remembered
    calls: SchedulerCalls
    velocity: GuidedVelocity
    negative: TextCondition | None = None  # for NAG, where the pipeline runs without a negative prompt


class LiveCore(EngineCore):
    """The engine of a loop; where gradients are wanted, they reach the transformer of its pipeline."""

    owns_weights = False

    def __init__(
        self, network: torch.nn.Module, further: Mapping[str, torch.nn.Module], live: LiveTransformer, graphs: bool | None
    ):
        super().__init__(network, further, live.device, live.dtype, graphs)
        self._live = live

    def networks_to_record(self) -> dict[str, torch.nn.Module]:
        """As :meth:`EngineCore.networks_to_record`."""
        return self.models | self._live.networks_to_record()

    def recorded_inputs(self) -> Iterator[Tensor]:
        """As :meth:`EngineCore.recorded_inputs`."""
        return self._live.recorded_inputs()


class GuidedCalls:
    """The guided velocity at each call that the loop of ``pipe``, an object with a transformer and a scheduler, makes.

    The network and its buffers are made by the first run and kept; whether the weights can be packed is asked anew at the
    start of every run, so that LoRA, offloading and quantisation may come and go.  A run begins where the scheduler, the
    prompts or the shapes are others than before, with ``guidance`` as it is then.
    """

    LIVE: type[LiveTransformer] = LiveTransformer
    ASK_NEGATIVE = "give it a negative_prompt ('' will do)"  # what to do where the rule needs one and the loop has none

    def __init__(
        self, pipe: Any, guidance: RulesLike, graphs: bool | None = None, models: Mapping[str, torch.nn.Module] | None = None
    ):
        self.pipe, self.guidance, self.graphs, self.models = pipe, guidance, graphs, dict(models or {})
        self._run: Run | None = None
        self._engine: EngineCore | None = None
        self._live = self.LIVE(pipe, self._forget_engine)

    @property
    def plan(self) -> Plan | None:
        """The plan of the current or last run; None before the first."""
        return None if self._run is None else self._run.velocity.plan

    def stop(self) -> None:
        """Forget the run, and let go of network and buffers."""
        self._run = None
        self._live.release()

    def rule_of_run(self) -> RulesLike:
        """The rule of a run that begins."""
        return self.guidance

    def text_of_nag(self, call: TransformerCall) -> TextCondition:
        """The negative prompts of a run with NAG that begins with ``call``, which has none."""
        raise ValueError(f"the rule needs a negative prompt: {self.ASK_NEGATIVE}")

    def _forget_engine(self) -> None:
        self._engine = None

    def velocity(self, call: TransformerCall, timestep: Tensor, watched: bool) -> Tensor:
        """[B, C, H, W] fp32.  ``watched``: whether weights may have changed since the call before."""
        if not self._continues(call):
            self._run = self._start(call, SchedulerCalls.of(self.pipe.scheduler), timestep)
        elif self._live.packed and not self._live.is_current():  # a LoRA came, weights moved: the run goes on another way
            before = self._run.velocity
            self._run = self._start(call, self._run.calls, timestep)
            self._run.velocity.remember(before)
        run = self._run
        index = run.calls.call(timestep)
        texts = call.texts(run.velocity.plan, run.negative)
        run.velocity.conditions = lambda plan: texts
        network = self._engine.models["main"]
        if isinstance(network, ModuleNetwork):
            network.inputs = call.inputs(run.velocity.plan.conditions)
        return run.velocity.at_calls(call.latents, np.full(len(call.latents), index), watched)

    def _continues(self, call: TransformerCall) -> bool:
        """Whether this call is one more of the run that is under way."""
        run = self._run
        return run is not None and run.calls.is_current(self.pipe.scheduler) and run.start.matches(call)

    def _cuts_off(self, call: TransformerCall) -> bool:
        """Whether this call is one of the run that is under way, without the negative prompt that it had."""
        run = self._run
        return run is not None and run.calls.is_current(self.pipe.scheduler) and run.start.lost_negative(call)

    def _start(self, call: TransformerCall, calls: SchedulerCalls, timestep: Tensor) -> Run:
        """Choose the path, compile the plan and load the prompts for the run that begins with this call."""
        cut_off = self._cuts_off(call)
        self._run = None  # gives its program back, for this run to load
        index = calls.call(timestep)
        call.check_halves()
        self._choose_engine(call)
        network = self._engine.models["main"]
        network.spec = replace(network.spec, text_tokens=call.context.shape[1])
        length: dict[str, Any] = {"text_tokens": call.context.shape[1]}
        specs = {name: replace(spec, **length) for name, spec in self._engine.specs.items()}

        height, width = call.latents.shape[-2:]
        rule = self.rule_of_run()
        velocity = GuidedVelocity(self._engine, rule, call.texts, height, width, calls.schedule, calls.solver, specs)
        if cut_off:
            _check_cut_off(velocity.plan, index)
        _check_conditions(velocity.plan, call, index, self.ASK_NEGATIVE)
        self._live.check_plan(velocity.plan)
        negative = self.text_of_nag(call) if _lacks_text(velocity.plan, call, index) else None
        velocity.conditions = partial(call.texts, negative=negative)
        warn_of(velocity.plan)
        velocity.load(call.latents)
        return Run(Remembered(call), calls, velocity, negative)

    def _choose_engine(self, call: TransformerCall) -> None:
        """Keep the engine at hand if path and weights are still the same, else make another."""
        network = self._live.current(call.module_path_reason(), (call.hidden.device, call.hidden.dtype))
        if self._engine is None:
            graphs = self.graphs if self._live.packed else False
            self._engine = LiveCore(network, self.models, self._live, graphs)


def _check_cut_off(plan: Plan, index: int) -> None:
    """Raise ``ValueError`` if a run whose negative prompt a callback took away before call ``index`` cannot go on so."""
    needed = any(plan.branches[branch].condition == "uncond" for live in plan.live[index:] for branch in live)
    if needed or plan.remembers:
        why = "evaluates the uncond branch after it" if needed else "carries directions across it, which start anew there"
        raise ValueError(
            f"a callback took the negative prompt away after call {index} of {plan.calls}, as SD3CFGCutoffCallback does by "
            f"setting guidance_scale to 0, and the rule {why}; leave the callback out and give the rule a window to there"
        )


def _lacks_text(plan: Plan, call: TransformerCall, index: int) -> bool:
    """Whether NAG acts from call ``index`` on and the pipeline has not encoded a negative prompt."""
    live = {branch for number in range(index, plan.calls) for branch in plan.live[number]}
    return "uncond" not in call.conditions and any(plan.branches[branch].is_text for branch in live)


def _check_conditions(plan: Plan, call: TransformerCall, index: int, remedy: str) -> None:
    """Raise ``ValueError`` if a branch that is live from call ``index`` on has a condition that the pipeline does not give."""
    for number in range(index, plan.calls):
        for branch in plan.live[number]:
            condition = plan.branches[branch].condition
            if condition not in call.conditions and not plan.branches[branch].is_text:
                raise ValueError(
                    f"the rule evaluates the {condition} branch at call {number + 1} of {plan.calls}, and the pipeline gives "
                    f"only the prompt; {remedy}"
                )
