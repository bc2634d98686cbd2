"""The inputs of one call of a pipeline's transformer, taken apart by condition."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.mmdit import TextCondition
from segue.models.module_rows import CallInputs, SlotInputs

from ..planning.plan import Plan

SCALE, IMAGES = "scale", "ip_adapter_image_embeds"  # joint_attention_kwargs that are not for attention processors


@dataclass(frozen=True, eq=False)
class TransformerCall:
    """One call; every tensor holds B rows for each of ``conditions``, in diffusers' order: uncond, cond."""

    conditions: tuple[str, ...]
    hidden: Tensor
    context: Tensor
    pooled: Tensor
    residuals: tuple[Tensor, ...]
    attention: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        guided: bool,
        hidden: Tensor,
        context: Tensor,
        pooled: Tensor,
        residuals: Sequence[Tensor] | None,
        attention: Mapping[str, Any] | None,
    ) -> "TransformerCall":
        """``guided``: whether the pipeline runs with a negative prompt.  Raises ``ValueError`` if rows do not fit."""
        conditions = ("uncond", "cond") if guided else ("cond",)
        rows = len(hidden)
        if len(context) != rows or len(pooled) != rows:
            raise ValueError(
                f"{len(context)} prompt embeddings do not fit {rows} latents (SD3CFGCutoffCallback leaves those of the last "
                "picture, by which diffusers goes on to draw every picture of the batch; leave it out and give the rule a "
                "window instead)"
            )
        if rows % len(conditions):
            raise ValueError(f"with guidance_scale > 1 the transformer takes pairs of rows, got {rows}")
        for name, tensor in (attention or {}).items():
            if isinstance(tensor, Tensor) and name != IMAGES:
                raise ValueError(f"joint_attention_kwargs[{name!r}] is a tensor, whose rows no branch can be given")
        return cls(conditions, hidden, context, pooled, tuple(residuals or ()), dict(attention or {}))

    @property
    def latents(self) -> Tensor:
        """[B, C, H, W]; both halves of a guided batch are the same latents."""
        return self.part(self.hidden, "cond")

    def part(self, tensor: Tensor, condition: str | int) -> Tensor:
        """The B rows of one condition; those of the prompt where the pipeline gives no such rows (the branch is dead)."""
        name = condition if condition in self.conditions else "cond"
        return tensor.chunk(len(self.conditions))[self.conditions.index(name)]

    def text(self, condition: str | int) -> TextCondition:
        """The prompts of one condition."""
        return TextCondition(self.part(self.context, condition), self.part(self.pooled, condition))

    def texts(self, plan: Plan, negative: TextCondition | None = None) -> dict[str | int, TextCondition]:
        """The prompts of every condition of a plan; ``negative`` ones where the pipeline gives none."""
        texts = {name: self.text(name) for name in plan.conditions}
        return texts if negative is None else texts | {"uncond": negative}

    def check_halves(self) -> None:
        """Raise ``ValueError`` if a guided batch is not the same latents twice.  Reads them from the device."""
        if len(self.conditions) == 2 and not torch.equal(self.part(self.hidden, "uncond"), self.latents):
            raise ValueError(
                "the two halves of the batch differ, though guidance_scale > 1: guidance is attached to another pipeline "
                "than the one that runs"
            )

    def module_path_reason(self) -> str | None:
        """Why this call needs the transformer's own modules, in one sentence; None if packed weights can serve it."""
        if self.residuals:
            return "a ControlNet adds residuals between the blocks"
        for name in self.attention:
            if name != SCALE:
                return f"joint_attention_kwargs has {name!r} for the attention processors"
        return None

    def inputs(self, conditions: Sequence[str | int]) -> CallInputs:
        """What the transformer's own modules take beside latents and prompts, for each condition of a plan."""
        images = self.attention.get(IMAGES)
        slots = tuple(
            SlotInputs(
                tuple(self.part(residual, name) for residual in self.residuals),
                None if images is None else self.part(images, name),
            )
            for name in conditions
        )
        return CallInputs(slots, {name: value for name, value in self.attention.items() if name not in (SCALE, IMAGES)})

    @contextmanager
    def scaled_lora(self, transformer: nn.Module) -> Iterator[None]:
        """LoRA layers at the scale that ``joint_attention_kwargs`` asks for."""
        from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers

        scale = self.attention.get(SCALE, 1.0)
        if not USE_PEFT_BACKEND or scale == 1.0:
            yield
            return
        scale_lora_layers(transformer, scale)
        try:
            yield
        finally:
            unscale_lora_layers(transformer, scale)


class Remembered:
    """The inputs a run was started with, to tell whether a later call still belongs to it."""

    def __init__(self, call: TransformerCall):
        self.kind = self._kind(call)
        self.prompts = [(tensor, self._version(tensor)) for tensor in (call.context, call.pooled)]

    def lost_negative(self, call: TransformerCall) -> bool:
        """Whether ``call`` lacks the negative prompt that the run was started with."""
        return "uncond" in self.kind[0] and "uncond" not in call.conditions

    def matches(self, call: TransformerCall) -> bool:
        """Same shapes and inputs, and prompts with the same values (compared only where the tensors are new)."""
        if self._kind(call) != self.kind:
            return False
        for (old, version), new in zip(self.prompts, (call.context, call.pooled), strict=True):
            if new is old:
                if self._version(new) != version:
                    return False
            elif not torch.equal(new, old):
                return False
        return True

    @staticmethod
    def _kind(call: TransformerCall) -> tuple:
        tensors = call.hidden, call.context, call.pooled
        shapes = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in tensors)
        return call.conditions, shapes, call.module_path_reason()

    @staticmethod
    def _version(tensor: Tensor) -> int | None:
        """Counts writes to a tensor; tensors of inference mode have no count."""
        return None if tensor.is_inference() else tensor._version
