"""Guidance inside a live diffusers SD3 pipeline: ``attach(pipe, guidance)``, ``detach(pipe)``.

The pipeline's own loop keeps running (schedulers, callbacks, image-to-image, output types).  Only the forward of its
transformer is replaced, on the instance: it returns the guided velocity for both halves of a classifier-free batch, so that
the pipeline's ``u + s (c - u)`` leaves it as it is for every ``s``.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from segue.models.dit_diffusers import live_dit_spec
from segue.models.mmdit import TextCondition
from segue.models.mmdit_diffusers import diffusers_spec

from ..argument_names import refuses_unknown
from ..device import check_graphs
from ..planning.compile import compile_plan
from ..planning.plan_warnings import warn_caller
from ..planning.schedule import linear
from ..planning.solvers import VELOCITY
from ..rules.batch import Rules, RulesLike, refuse_draws, rules_and_notes, with_call_scale
from ..rules.linear_rules import CFG
from ..rules.rule_text import shown_rule
from ..running.recorded_call import check_unrecorded
from .dit_pipeline import DiTAttachment, check_dit, is_dit
from .forward_slot import MARK
from .further_networks import further_networks
from .guided_calls import GuidedCalls
from .live_transformer import execution_device, path_text
from .mixed_precision import autocast_around
from .negative_text import negative_text
from .packing import check_own_forward, check_transformer, transformer_of
from .running_pipeline import put_back_processors, running_pipeline
from .scale_of_call import rule_of_call
from .shared_forward import SharedForward
from .transformer_call import TransformerCall

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


class Attachment(GuidedCalls):
    """What stands in for a transformer's forward while a rule is attached to its pipeline, whose loop goes on calling it."""

    guidance: Rules
    ASK_NEGATIVE = "pass guidance_scale > 1 to the pipeline, which switches its negative prompt on"

    def __init__(
        self, pipe: Any, guidance: Rules, graphs: bool | None = None, models: Mapping[str, torch.nn.Module] | None = None
    ):
        super().__init__(pipe, guidance, graphs, models)
        self.transformer = pipe.transformer
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
            velocity = self.velocity(call, timestep, watched)
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

    def rule_of_run(self) -> Rules:
        """As :meth:`GuidedCalls.rule_of_run`: the scale of the call, where the rule takes it."""
        return rule_of_call(self.guidance, self.pipe)

    def text_of_nag(self, call: TransformerCall) -> TextCondition:
        """As :meth:`GuidedCalls.text_of_nag`: encoded for it, as the pipeline does with guidance."""
        return negative_text(self.pipe, call)
