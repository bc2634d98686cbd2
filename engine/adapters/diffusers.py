"""Guidance inside a live diffusers SD3 pipeline: ``attach(pipe, guidance)``, ``detach(pipe)``.

The pipeline's own loop keeps running (schedulers, callbacks, image-to-image, output types).  Only the forward of its
transformer is replaced, on the instance: it returns the guided velocity for both halves of a classifier-free batch, so that
the pipeline's ``u + s (c - u)`` leaves it as it is for every ``s``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.models.dit_diffusers import live_dit_spec
from segue.models.mmdit import TextCondition
from segue.models.mmdit_diffusers import diffusers_spec
from segue.models.module_rows import ModuleNetwork

from ..argument_names import refuses_unknown
from ..core import EngineCore
from ..device import check_graphs
from ..planning.compile import compile_plan
from ..planning.plan import Plan
from ..planning.plan_warnings import warn_caller, warn_of
from ..planning.schedule import linear
from ..planning.solvers import VELOCITY
from ..rules.batch import Rules, RulesLike, refuse_draws, rules_and_notes, with_call_scale
from ..rules.linear_rules import CFG
from ..rules.rule_text import shown_rule
from ..running.recorded_call import check_unrecorded
from ..velocity import GuidedVelocity
from .dit_pipeline import DiTAttachment, check_dit, is_dit
from .forward_slot import MARK
from .further_networks import further_networks
from .live_transformer import LiveTransformer, execution_device, path_text
from .mixed_precision import autocast_around
from .negative_text import negative_text
from .packing import check_own_forward, check_transformer, transformer_of
from .running_pipeline import put_back_processors, running_pipeline
from .scale_of_call import rule_of_call
from .scheduler_calls import SchedulerCalls
from .shared_forward import SharedForward
from .transformer_call import Remembered, TransformerCall

OWN_GUIDANCE = CFG("call")  # what a pipeline does by itself


@refuses_unknown()
def attach(
    pipe: Any, guidance: RulesLike = OWN_GUIDANCE, *, graphs: bool | None = None, models: Mapping[str, Any] | None = None
) -> "Attachment | DiTAttachment":
    """Guide a live SD3, SD3.5 or DiT pipeline of diffusers by ``guidance``, a rule or its text, until :func:`detach`.

    Left out, the rule is the pipeline's own classifier-free guidance by the ``guidance_scale`` of each call; None is unguided.
    A rule with a number for each sample, or a list of a rule for each, guides calls that draw that many pictures.
    ``pipe(...)`` keeps its signature.  Its ``guidance_scale`` switches the negative prompt on (above 1), which rules with an
    unconditional branch need.  The scale itself acts where the rule takes it, ``CFG("call")``; where it does not, another than
    the default is warned of.  ``NAG`` takes the negative prompt of a call whatever the scale, at 1 and below by encoding it.
    What is odd about the plan of a run is a :class:`PlanWarning` too.

    Pipelines that share a transformer may be attached side by side, each with a rule of its own.  Attaching again replaces the
    rule, and finds a transformer that was put in the place of the attached one, which is not guided until then.  ``graphs``
    captures steps on packed weights as CUDA graphs (default: on CUDA).  One thread at a time may run the pipeline, as without:
    its scheduler has a state.  Where autograd records, the transformer gives the true gradients of the guided velocity.

    ``models`` names further networks for autoguidance, as in ``{"weak": smaller}``: files, folders, hub ids, pipelines or
    transformers of the same kind, whose weights are copied as they are now.

    A ``DiTPipeline`` may have any scheduler of whole timesteps; there gradients are refused, and so are weights that move or
    are adapted.

    Returns the :class:`Attachment`, whose ``plan`` and ``explain()`` describe the last run.
    Raises ``TypeError`` or ``ValueError`` for a pipeline that cannot be guided.
    """
    transformer = transformer_of(pipe)
    dit = is_dit(transformer)
    (check_dit if dit else check_transformer)(transformer)
    check_graphs(graphs, execution_device(transformer))
    spec = live_dit_spec(transformer) if dit else diffusers_spec(transformer)
    guidance, notes = rules_and_notes(guidance, spec)
    further = further_networks(models, spec)
    specs = {"main": spec} | {name: network.spec for name, network in further.items()}
    compile_plan(with_call_scale(guidance, 1.0), linear(28), VELOCITY, specs)  # branches that do not exist are refused here
    if not dit:
        refuse_draws(guidance)
    for note in notes:
        warn_caller(note)
    present, shared = attached_to(pipe), SharedForward.of(transformer)
    if shared is not None and present in shared.members:
        present.stop()
        present.guidance, present.graphs, present.models = guidance, graphs, further
        return present
    if shared is None:
        check_own_forward(transformer)
    if present is not None:
        present.remove()  # from the transformer that the pipeline held before
    return (DiTAttachment if dit else Attachment)(pipe, guidance, graphs, further)


def detach(pipe: Any) -> None:
    """Put a pipeline back as it was before :func:`attach`, whatever transformer it holds by now.

    Raises ``ValueError`` if nothing is attached to it.
    """
    present = attached_to(pipe)
    if present is None:
        raise ValueError(f"nothing is attached to this {type(pipe).__name__}")
    present.remove()


def attached_to(pipe: Any) -> "Attachment | DiTAttachment | None":
    """What is attached to a pipeline, if anything; a copy of an attached one has nothing of its own."""
    present = getattr(pipe, MARK, None)
    return present if present is not None and present.pipe is pipe else None


@dataclass(eq=False)
class Run:
    """One run of the pipeline: the inputs it started with, the calls its scheduler makes, and the velocity at them."""

    start: Remembered
    calls: SchedulerCalls
    velocity: GuidedVelocity
    negative: TextCondition | None = None  # for NAG, where the pipeline runs without a negative prompt


class AttachedCore(EngineCore):
    """The engine of an attachment; where gradients are wanted, they reach the transformer that is attached to."""

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


class Attachment:
    """What stands in for a transformer's forward while a rule is attached to its pipeline.

    The network and its buffers are made by the first run and kept; whether the weights can be packed is asked anew at the
    start of every run, so that LoRA, offloading and quantisation may come and go.
    """

    def __init__(
        self, pipe: Any, guidance: Rules, graphs: bool | None = None, models: Mapping[str, torch.nn.Module] | None = None
    ):
        self.pipe, self.transformer, self.guidance, self.graphs = pipe, pipe.transformer, guidance, graphs
        self.models = dict(models or {})
        self._run: Run | None = None
        self._engine: EngineCore | None = None
        self._live = LiveTransformer(pipe, self._forget_engine)
        self._shared = SharedForward.join(self.transformer, self)
        setattr(pipe, MARK, self)

    def remove(self) -> None:
        """Put the transformer's own forward back, and let go of everything."""
        self._shared.leave(self)
        delattr(self.pipe, MARK)
        self.stop()

    def __deepcopy__(self, memo: dict) -> None:
        """Nothing: a copy of an attached pipeline is not attached."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {shown_rule(self.guidance)} on a {type(self.pipe).__name__}>"

    @property
    def plan(self) -> Plan | None:
        """The plan of the current or last run; None before the first."""
        return None if self._run is None else self._run.velocity.plan

    def explain(self) -> str:
        """Which path the last run took and why, what the engine holds, and the plan.

        Before the first run: the path that it would take, as far as the pipeline alone tells (a ControlNet or an IP-Adapter
        comes with the call).
        """
        run, engine = self._run, self._engine  # another thread may be running the pipeline
        if run is None or engine is None:
            return f"attached; no run yet\n{self._live.forecast()}"
        held = [engine.explain()] if self._live.packed else []
        return "\n".join([path_text(self._live.module_reason), *held, str(run.velocity.plan)])

    def stop(self) -> None:
        """Forget the run, and let go of network and buffers."""
        self._run = None
        self._live.release()

    def _forget_engine(self) -> None:
        self._engine = None

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        block_controlnet_hidden_states: Sequence[Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        skip_layers: list[int] | None = None,
    ) -> Any:
        """In the place of ``SD3Transformer2DModel.forward``: the guided velocity, once for each half of the batch."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        running, watched = running_pipeline()
        self._refuse_other_pipelines(running)
        self._refuse_own_rules(skip_layers)
        check_unrecorded("the time, which is the scheduler's,", timestep=timestep)
        call = TransformerCall.of(
            getattr(self.pipe, "do_classifier_free_guidance", False),
            hidden_states,
            encoder_hidden_states,
            pooled_projections,
            block_controlnet_hidden_states,
            joint_attention_kwargs,
        )
        autocast = autocast_around(self._shared.replaced)
        with call.scaled_lora(self.pipe.transformer), autocast or nullcontext():
            velocity = self._velocity(call, timestep, watched)
        sample = torch.cat([velocity] * len(call.conditions)).to(hidden_states.dtype if autocast is None else torch.float32)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _refuse_other_pipelines(self, running: Any) -> None:
        """Raise ``ValueError`` unless the transformer is called by the attached pipeline, or by a loop written by hand."""
        if self.pipe.transformer is not self.transformer:
            raise ValueError(
                "guidance is attached to a transformer that its pipeline no longer holds; "
                "call segue.attach on that pipeline again, or segue.detach"
            )
        if running is not None and running is not self.pipe:
            raise ValueError(
                f"guidance is attached to another pipeline than the one that runs, a {type(running).__name__}; "
                "call segue.detach on the attached one and segue.attach on this one"
            )

    def _refuse_own_rules(self, skip_layers: list[int] | None) -> None:
        """Raise ``ValueError`` if the pipeline adds a guidance rule of its own, whose extra rows or passes no plan holds."""
        if skip_layers is not None:
            raise ValueError(
                f"the pipeline's own skip_guidance_layers={skip_layers} cannot join an attached rule; "
                "give SkipLayer(weight, layers, window=...) to segue.attach instead"
            )
        if getattr(self.pipe, "do_perturbed_attention_guidance", False):
            put_back_processors(self.pipe)
            scale = self.pipe.pag_scale
            raise ValueError(
                f"the pipeline's own perturbed attention (pag_scale={scale:g}) cannot join an attached rule; give "
                f"PerturbedLayers({scale:g}, layers, kind='attention_identity_image') to segue.attach instead, "
                "which keeps the attention to the text as the pipeline does ('attention_identity' does not)"
            )

    def _velocity(self, call: TransformerCall, timestep: Tensor, watched: bool) -> Tensor:
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
        rule = rule_of_call(self.guidance, self.pipe)
        velocity = GuidedVelocity(self._engine, rule, call.texts, height, width, calls.schedule, calls.solver, specs)
        if cut_off:
            _check_cut_off(velocity.plan, index)
        _check_conditions(velocity.plan, call, index)
        self._live.check_plan(velocity.plan)
        negative = negative_text(self.pipe, call) if _lacks_text(velocity.plan, call, index) else None
        velocity.conditions = partial(call.texts, negative=negative)
        warn_of(velocity.plan)
        velocity.load(call.latents)
        return Run(Remembered(call), calls, velocity, negative)

    def _choose_engine(self, call: TransformerCall) -> None:
        """Keep the engine at hand if path and weights are still the same, else make another."""
        network = self._live.current(call.module_path_reason(), (call.hidden.device, call.hidden.dtype))
        if self._engine is None:
            graphs = self.graphs if self._live.packed else False
            self._engine = AttachedCore(network, self.models, self._live, graphs)


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


def _check_conditions(plan: Plan, call: TransformerCall, index: int) -> None:
    """Raise ``ValueError`` if a branch that is live from call ``index`` on has a condition that the pipeline does not give."""
    for number in range(index, plan.calls):
        for branch in plan.live[number]:
            condition = plan.branches[branch].condition
            if condition not in call.conditions and not plan.branches[branch].is_text:
                raise ValueError(
                    f"the rule evaluates the {condition} branch at call {number + 1} of {plan.calls}, and the pipeline gives "
                    "only the prompt; pass guidance_scale > 1 to the pipeline, which switches its negative prompt on"
                )
