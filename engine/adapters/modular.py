"""A guider for modular diffusers: any sum of CFG and skip-layer terms on Stable Diffusion 3, two lines for its users.

::

    from segue import SegmentedGuidance

    pipe.update_components(guider=SegmentedGuidance(SGG(CFG(4.5), SkipLayer(3.0, (7, 8, 9)), switch=0.75)))

The pipeline keeps its own loop and calls the transformer once per live branch, never batched.  Skipped blocks go through
``skip_layers``, the argument of ``SD3Transformer2DModel`` itself, so both streams bypass them and nothing is patched.
diffusers is imported with the class, not with this module.
"""

import inspect
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.models.mmdit_diffusers import OF_ONE_CALL

from ..planning.term_weights import resolve_weights, rule_branches
from ..rules.branch import UNCOND, Branch, Perturb
from ..rules.guidance import Guidance
from ..rules.presets import RuleLike, as_rule
from ..rules.rule_text import rule_text
from .packing import check_processors
from .scheduler_calls import SchedulerCalls

if TYPE_CHECKING:
    from diffusers.guiders.guider_utils import BaseGuidance as _Base
else:
    _Base = object  # diffusers' class is put beside it when it is asked for

TRAIN_STEPS = 1000  # SD3's timestep is 1000 sigma


def _check_rule(rule: Guidance) -> Guidance:
    if rule.samples is not None:
        raise ValueError(f"a guider has one number for all samples, and the rule has numbers for {rule.samples} samples")
    if rule.corrections:
        raise ValueError(f"a guider adds terms up, and the rule has the correction {rule.corrections[0]}")
    if rule.attention:
        raise ValueError("a guider combines predictions, and NAG acts inside the attention: segue.attach takes it")
    for term in rule.terms:
        network = term.branch.network
        skips = term.branch.condition == "cond" and isinstance(network, Perturb) and network.kind == "skip"
        if term.branch.model != "main" or not (term.branch == UNCOND or skips):
            raise ValueError(f"a guider can evaluate the negative prompt and skipped layers, not the branch {term.branch}")
        if term.channels is not None:
            raise ValueError(f"a guider guides all latent channels, got channels {term.channels}")
        if term.stop is not None:
            raise ValueError(f"a guider stops at no cosine, got {term.stop:g}")
        if not term.reuse.is_exact:
            raise ValueError(f"a guider keeps no directions between calls, got a rule that computes them {term.reuse}")
    return rule


def _rule_text(rule: Guidance) -> str | None:
    """The rule as ``parse_rule`` reads it; None where a weight is a function, which has no text."""
    return None if any(term.weight.function for term in rule.terms) else rule_text(rule)


class RuleGuider(_Base):
    """A guider that evaluates the live branches of a rule, one by one, and combines them exactly.

    ``SegmentedGuidance`` is this class on top of diffusers' own ``BaseGuidance``.
    """

    _input_predictions = ["pred_cond"]  # noqa: RUF012 - the base class insists on a list

    def __init__(self, guidance: RuleLike, scheduler: Any = None, enabled: bool = True):
        """``guidance``: a rule or its text; ``scheduler``: the pipeline's own, for rules that count steps and for Heun.

        Raises ``ValueError`` for branches other than the negative prompt and skipped layers, and for windows in steps or
        fractions and linear weights without a scheduler.
        """
        super().__init__(enabled=enabled)
        self.guidance = _check_rule(as_rule(guidance))
        self.scheduler = scheduler
        if scheduler is None and (what := self.guidance.needs_schedule()):
            raise ValueError(f"{what} needs the schedule: pass scheduler=pipe.scheduler")
        self.register_to_config(guidance=_rule_text(self.guidance), enabled=enabled)
        self._branches = rule_branches([self.guidance])
        self._rows, _ = resolve_weights(self.guidance, self._branches, np.ones(0))
        self._live: tuple[int, ...] = tuple(range(len(self._branches)))
        self._handle = None

    def new(self, **changes):
        """A copy, with ``guidance``, ``scheduler`` or ``enabled`` replaced."""
        return type(self)(**{"guidance": self.guidance, "scheduler": self.scheduler, "enabled": self._enabled, **changes})

    def save_config(self, *args, **kwargs):
        """Write the rule as text; ``ValueError`` where a weight is a function of sigma."""
        if self.config["guidance"] is None:
            raise ValueError("a rule whose weight is a function of sigma cannot be saved; use a number")
        super().save_config(*args, **kwargs)

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """Find the live branches of call ``step`` (from 0) at ``timestep``."""
        if self.scheduler is None and step > 0 and float(timestep) == float(self._timestep):
            raise ValueError(f"two calls at timestep {float(timestep):g} are stages of one step: pass scheduler=pipe.scheduler")
        super().set_state(step, num_inference_steps, timestep)
        self._disarm()
        rule = self.guidance if self._enabled else Guidance()
        levels, ends, index = self._levels(timestep)
        self._branches = rule_branches([rule])
        weights, oddities = resolve_weights(rule, self._branches, levels, ends)
        self._rows = weights[index:]  # this call and what is known of those after it
        self._live = (0, *(int(k) + 1 for k in np.flatnonzero(self._rows[0])))
        if step == 0 and self.scheduler is not None:
            for oddity in oddities:
                warnings.warn(oddity, stacklevel=2)

    def _levels(self, timestep: Tensor) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Noise levels at which the steps of this run start and end, as the scheduler holds them, and the step being made."""
        if self.scheduler is None:
            return np.array([float(timestep) / TRAIN_STEPS]), None, 0
        calls = SchedulerCalls.of(self.scheduler)
        levels = calls.schedule.array()
        return levels[:-1], levels[1:], calls.solver.rows(levels)[calls.call(timestep)].step

    @property
    def num_conditions(self) -> int:
        """Evaluations of the current call; before the first one, the most that any call can need."""
        return len(self._live) if self._enabled else 1

    @property
    def is_conditional(self) -> bool:
        """Whether the branch being evaluated sees the positive prompt."""
        return self._branch.condition == "cond"

    @property
    def _branch(self) -> Branch:
        return self._branches[self._live[self._count_prepared - 1]]

    def prepare_inputs(self, data: dict[str, Tensor | tuple[Tensor, Tensor]]) -> list:
        """One set of network inputs per live branch, the conditional one first."""
        pairs = [value for value in data.values() if isinstance(value, tuple)]
        self._check_negative(bool(pairs) and all(value[1] is not None for value in pairs))
        return [self._prepare_batch(data, *self._place(k)) for k in self._live]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, str | tuple[str, str]]) -> list:
        """The same from the names of a block state's fields."""
        pairs = [value for value in input_fields.values() if isinstance(value, tuple)]
        self._check_negative(bool(pairs) and all(getattr(data, names[1], None) is not None for names in pairs))
        return [self._prepare_batch_from_block_state(input_fields, data, *self._place(k)) for k in self._live]

    def _place(self, k: int) -> tuple[int, str]:
        """Which of (positive, negative) branch ``k`` takes, and the name of its prediction."""
        return int(self._branches[k] == UNCOND), f"pred_{k}"

    def _check_negative(self, given: bool) -> None:
        needed = any(self._rows[:, k - 1].any() for k, branch in enumerate(self._branches) if branch == UNCOND)
        if needed and not given:
            raise ValueError("the rule needs the unconditional branch: give the pipeline a negative_prompt ('' will do)")

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Ask the next call of ``denoiser`` to skip the layers of its branch."""
        super().prepare_models(denoiser)
        if self._count_prepared == 1:
            self._check_denoiser(denoiser)
        if isinstance(self._branch.network, Perturb):
            layers, caller = list(self._branch.perturbed_layers), threading.get_ident()

            @torch.compiler.disable  # a compiler would take one thread for all
            def skip(module: nn.Module, args: tuple, kwargs: dict | None = None) -> tuple[tuple, dict] | None:
                # another pipeline may call the same transformer meanwhile, and PyTorch looks up twice whether a hook is there
                # and takes keywords: a call that this one's removal overtakes gives none
                if kwargs is None or threading.get_ident() != caller:
                    return None
                self._disarm()  # for one call only, even if that call fails
                return args, {**kwargs, "skip_layers": layers}

            setattr(skip, OF_ONE_CALL, True)
            self._handle = denoiser.register_forward_pre_hook(skip, with_kwargs=True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self._disarm()

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _check_denoiser(self, denoiser: nn.Module) -> None:
        from diffusers import SD3Transformer2DModel

        network = getattr(denoiser, "_orig_mod", denoiser)  # torch.compile wraps
        if isinstance(network, SD3Transformer2DModel):
            check_processors(network)
        skipped = [layer for branch in self._branches for layer in branch.perturbed_layers]
        if skipped and "skip_layers" not in inspect.signature(type(network).forward).parameters:
            raise TypeError(f"skip-layer guidance needs SD3Transformer2DModel, got {type(network).__name__}")
        if skipped and max(skipped) >= len(network.transformer_blocks):
            raise ValueError(f"layer {max(skipped)} does not exist: blocks are 0 to {len(network.transformer_blocks) - 1}")

    def forward(self, pred_0: Tensor, **others: Tensor) -> Any:
        """``c + sum_k w_k (c - k)`` in fp32, [B, C, H, W]."""
        from diffusers.guiders.guider_utils import GuiderOutput

        conditional = pred_0.float()
        guided, unconditional = conditional, None
        for k in self._live[1:]:
            guided = guided + float(self._rows[0, k - 1]) * (conditional - others[f"pred_{k}"].float())
            if self._branches[k] == UNCOND:
                unconditional = others[f"pred_{k}"]
        return GuiderOutput(pred=guided, pred_cond=pred_0, pred_uncond=unconditional)


if TYPE_CHECKING:

    class SegmentedGuidance(RuleGuider): ...


def __getattr__(name: str):
    """Define ``SegmentedGuidance`` when it is first asked for."""
    if name != "SegmentedGuidance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from diffusers.guiders.guider_utils import BaseGuidance

    globals()[name] = type(name, (RuleGuider, BaseGuidance), {"__module__": __name__, "__doc__": RuleGuider.__doc__})
    return globals()[name]
