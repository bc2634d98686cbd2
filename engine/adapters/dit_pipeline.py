"""Guidance inside a live ``DiTPipeline``: what stands in for its transformer's forward while a rule is attached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from segue.models.dit_diffusers import from_diffusers_dit, live_dit_spec
from segue.models.parameterization import Parameterization
from segue.models.spec import SiTSpec
from segue.models.weight_watch import WeightWatch

from ..core import EngineCore
from ..planning.plan import Condition, Plan
from ..planning.plan_warnings import warn_of
from ..planning.schedule import Schedule
from ..planning.solvers import NOISE
from ..rules.batch import Rules
from ..rules.drawn import Draw, plain_condition
from ..rules.rule_text import shown_rule
from ..running.recorded_call import is_recorded
from ..velocity import GuidedVelocity
from .forward_slot import MARK, ForwardSlot, own_forward
from .live_transformer import execution_device
from .packing import diffusers_hooks
from .running_pipeline import running_pipeline
from .scale_of_call import rule_of_call
from .shared_forward import SharedForward

OWN_MODULES = ("torch.nn.", "diffusers.models.")  # whose modules a DiT is made of


def is_dit(transformer: Any) -> bool:
    """Whether this is diffusers' DiT."""
    from diffusers import DiTTransformer2DModel

    return isinstance(transformer, DiTTransformer2DModel)


def check_dit(transformer: nn.Module) -> None:
    """Raise ``ValueError``, in one sentence, for a DiT whose weights cannot be read: moved by hooks, adapted, compiled."""
    for name, module in transformer.named_modules():
        where = name or "the transformer"
        if hasattr(module, "_hf_hook"):
            raise ValueError(
                f"{where} has an accelerate hook ({type(module._hf_hook).__name__}), and a DiT cannot be offloaded"
            )
        if module._compiled_call_impl is not None:
            raise ValueError(f"{where} is compiled, which an engine would leave out; use the pipeline as it was")
        if not type(module).__module__.startswith(OWN_MODULES):
            raise ValueError(f"{where} is a {type(module).__name__}, whose weights are not those of a DiT; merge or remove it")
    for name, hook in diffusers_hooks(transformer):
        raise ValueError(
            f"{name or 'the transformer'} has a {type(hook).__name__}, and the weights of a DiT must stay in place"
        )


@dataclass(frozen=True, eq=False)
class DiTCall:
    """One call of the pipeline: latents [B, C, H, W], B labels, and how often the batch stands in it, once or twice."""

    latents: Tensor
    labels: tuple[int, ...]
    copies: int

    @classmethod
    def of(cls, hidden: Tensor, labels: Sequence[int], spec: SiTSpec) -> "DiTCall":
        """The second half of a batch is the unconditional one where it is the same latents under the null label.

        Raises ``ValueError`` for labels that are not one per latent, or that the network does not have.
        """
        if len(labels) != len(hidden):
            raise ValueError(f"{len(labels)} class labels do not fit {len(hidden)} latents")
        for label in labels:
            if not 0 <= label <= spec.null_label:
                raise ValueError(
                    f"class label {label} is out of range: the transformer has classes 0 to {spec.num_classes - 1}"
                )
        half = len(hidden) // 2
        guided = (
            len(hidden) == 2 * half and set(labels[half:]) == {spec.null_label} and torch.equal(hidden[:half], hidden[half:])
        )
        return cls(hidden[:half], tuple(labels[:half]), 2) if guided else cls(hidden, tuple(labels), 1)

    @property
    def kind(self) -> tuple:
        """What stays the same during a run."""
        return self.labels, self.copies, tuple(self.latents.shape), self.latents.dtype, self.latents.device

    def conditions(self, plan: Plan) -> dict[Condition, Tensor]:
        """Labels [B] for every condition of a plan; of drawn ones, those where nothing was chosen."""
        spec = cast(SiTSpec, plan.spec)
        if plan.draws and max(self.labels) >= spec.num_classes:
            raise ValueError(
                f"the {plan.draws[0]} of a rule is for samples of a class, and the pipeline asks for class {max(self.labels)} "
                f"of {spec.num_classes}"
            )
        named = {"cond": list(self.labels), "uncond": [spec.null_label] * len(self.labels)}
        found = {}
        for name in plan.conditions:
            taken = plain_condition(name) if isinstance(name, Draw) else name
            found[name] = named[taken] if taken in named else [int(taken)] * len(self.labels)
        return {name: torch.tensor(values, device="cpu") for name, values in found.items()}


@dataclass(eq=False)
class DiTRun:
    """One run of the pipeline: its ``timesteps`` (every ``set_timesteps`` makes new ones), and how many calls were made."""

    timesteps: Any
    times: list[int]
    kind: tuple
    noise: GuidedVelocity
    made: int = 0

    def continues(self, scheduler: Any, call: DiTCall, time: int) -> bool:
        """Whether a call is the next one of this run."""
        same = self.timesteps is scheduler.timesteps and self.kind == call.kind
        return same and self.made < len(self.times) and self.times[self.made] == time


class DiTAttachment:
    """As :class:`.diffusers.Attachment`, for a ``DiTPipeline``: its steps get the guided noise, of all rules that it knows.

    The pipeline's ``u + s (c - u)`` leaves the noise as it is for every ``guidance_scale``, which acts where the rule takes it
    and nowhere else: the network knows its null label.  The learned variance, which the pipeline drops, is zero.  The weights
    of a run are those that it begins with.
    """

    def __init__(self, pipe: Any, guidance: Rules, graphs: bool | None = None, models: Mapping[str, nn.Module] | None = None):
        self.pipe, self.transformer, self.guidance, self.graphs = pipe, pipe.transformer, guidance, graphs
        self.models = dict(models or {})
        self._engine: EngineCore | None = None
        self._watch: WeightWatch | None = None
        self._run: DiTRun | None = None
        self._spec = live_dit_spec(self.transformer)
        if SharedForward.of(self.transformer) is None and ForwardSlot.of(self.transformer).forward != own_forward(
            self.transformer
        ):
            raise ValueError("the transformer's forward runs under accelerate's mixed precision; use the pipeline's own dtype")
        self._shared = SharedForward.join(self.transformer, self)
        setattr(pipe, MARK, self)

    def __deepcopy__(self, memo: dict) -> None:
        """Nothing: a copy of an attached pipeline is not attached."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {shown_rule(self.guidance)} on a {type(self.pipe).__name__}>"

    def remove(self) -> None:
        """Put the transformer's own forward back, and let go of everything."""
        self._shared.leave(self)
        delattr(self.pipe, MARK)
        self.stop()

    def stop(self) -> None:
        """Forget the run, and let go of network and buffers."""
        self._run = self._engine = self._watch = None

    @property
    def plan(self) -> Plan | None:
        """The plan of the current or last run; None before the first."""
        return None if self._run is None else self._run.noise.plan

    def explain(self) -> str:
        """What the engine holds, and the plan of the last run."""
        if self._run is None or self._engine is None:
            return "attached; no run yet"
        return f"path: a network of ours with the pipeline's weights\n{self._engine.explain()}\n{self._run.noise.plan}"

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """In the place of ``DiTTransformer2DModel.forward``: the guided noise for each half of the batch, no variance."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        self._check(hidden_states, timestep, class_labels, cross_attention_kwargs)
        call = DiTCall.of(hidden_states, class_labels.tolist(), self._spec)
        times = set(timestep.expand(len(hidden_states)).tolist())
        if len(times) > 1 or not float(next(iter(times))).is_integer():
            raise ValueError(f"a DiT attached to is called at one whole timestep for all samples, got {sorted(times)}")
        noise = self._noise(call, int(times.pop()))
        channels = self._spec.out_channels - self._spec.channels
        output = torch.cat([noise, noise.new_zeros(len(noise), channels, *noise.shape[2:])], dim=1)
        sample = torch.cat([output] * call.copies).to(hidden_states.dtype)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _check(self, hidden: Tensor, timestep: Tensor | None, labels: Tensor | None, attention: Any) -> None:
        """Raise ``ValueError`` for a call that no plan holds."""
        running, _ = running_pipeline()
        if self.pipe.transformer is not self.transformer or running not in (None, self.pipe):
            raise ValueError(
                "guidance is attached to another pipeline than the one that runs; call segue.detach on that one, and "
                "segue.attach on this one"
            )
        if timestep is None or labels is None:
            raise ValueError("the transformer is called without a timestep or class labels")
        if attention:
            raise ValueError(f"cross_attention_kwargs={attention!r} cannot join an attached rule; leave it out")
        if is_recorded([hidden, *self.transformer.parameters()]):
            raise ValueError("guidance attached to a DiT has no gradients: call the pipeline under torch.no_grad()")

    def _current_engine(self) -> EngineCore:
        """An engine with the weights as they are: the one at hand, unless they changed."""
        if self._engine is None or self._watch is None or not self._watch.unchanged():
            self.stop()
            check_dit(self.transformer)
            network, place = from_diffusers_dit(self.transformer), (execution_device(self.transformer), self.transformer.dtype)
            self._engine = EngineCore(network, self.models, *place, self.graphs)
            self._watch = WeightWatch(self.transformer.parameters)
        return self._engine

    def _noise(self, call: DiTCall, time: int) -> Tensor:
        """The guided noise [B, C, H, W] fp32 at the coming call of the run, or at the first of a new one."""
        run, scheduler = self._run, self.pipe.scheduler
        if run is None or not run.continues(scheduler, call, time):
            run = self._run = self._start(call, time)
        index, run.made = run.made, run.made + 1
        scale = float(run.noise.plan.table[index, 0])  # the state in flow coordinates is the latents over this
        return run.noise.at_calls(call.latents.float() / scale, np.full(len(call.latents), index))

    def _start(self, call: DiTCall, time: int) -> DiTRun:
        """The run that begins with this call."""
        self._run, scheduler = None, self.pipe.scheduler  # gives its program back
        name, engine = type(scheduler).__name__, self._current_engine()
        times = [float(value) for value in scheduler.timesteps]
        if not all(value.is_integer() and 0 <= value < Parameterization.TRAIN_STEPS for value in times):
            raise ValueError(
                f"{name} has timesteps that are no whole numbers below {Parameterization.TRAIN_STEPS}, as {times[0]:g}"
            )
        if not times or time != times[0]:
            raise ValueError(
                f"the transformer is called at timestep {time}, where a run of {name} begins at {times[0] if times else None}: "
                "set its timesteps before the run, and call the transformer once at each"
            )
        indices = [int(value) for value in times]
        schedule = Schedule((*Parameterization(self._spec).levels(indices).tolist(), 0.0), name)
        height, width = call.latents.shape[-2:]
        rule = rule_of_call(self.guidance, self.pipe)
        noise = GuidedVelocity(engine, rule, call.conditions, height, width, schedule, NOISE)
        warn_of(noise.plan)
        noise.load(call.latents)
        return DiTRun(scheduler.timesteps, indices, call.kind, noise)
