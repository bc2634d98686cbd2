"""How the transformer of a live pipeline can run: packed, through its own modules, or not at all."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from segue.models.mmdit import MMDiT
from segue.models.mmdit_diffusers import from_diffusers, packing_obstacle, unshared
from segue.models.wrapped_modules import WRAPPERS, wrapper_of

from .forward_slot import ForwardSlot, own_forward
from .glance import Glance
from .mixed_precision import autocast_around

# diffusers' hooks that only move or cast weights around a module's own forward
HARMLESS_HOOKS = ("GroupOffloadingHook", "LazyPrefetchGroupOffloadingHook", "LayerExecutionTrackerHook", "LayerwiseCastingHook")


def transformer_of(pipe: Any) -> Any:
    """The transformer that a pipeline holds, whatever it is.  Raises ``TypeError`` for what is no pipeline with one."""
    if not hasattr(pipe, "transformer"):
        raise TypeError(f"a diffusers pipeline of Stable Diffusion 3 or DiT is needed, got an object of {type(pipe).__name__}")
    return pipe.transformer


def check_transformer(transformer: nn.Module) -> None:
    """Raise ``TypeError`` or ``ValueError``, in one sentence, for a transformer that cannot follow a row plan."""
    from diffusers import SD3Transformer2DModel

    if type(transformer).__name__ == "OptimizedModule" or getattr(transformer, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "the transformer is compiled as a whole, which fixes its rows; compile its blocks instead: "
            "for block in pipe.transformer.transformer_blocks: block.compile()"
        )
    if (wrapper := wrapper_of(transformer)) is not None:
        raise TypeError(
            f"the transformer is wrapped in a {wrapper}, through which the pipeline cannot look; give it the one inside, as "
            f"accelerator.unwrap_model does: pipe.transformer = pipe.transformer.{WRAPPERS[wrapper]}"
        )
    if not isinstance(transformer, SD3Transformer2DModel):
        raise TypeError(f"a pipeline with an SD3Transformer2DModel is needed, got {type(transformer).__name__}")
    for name, hook in diffusers_hooks(transformer):
        if type(hook).__name__ not in HARMLESS_HOOKS:
            raise ValueError(
                f"{name or 'the transformer'} has a {type(hook).__name__}, which keeps state between calls of fixed rows; "
                "remove it"
            )
    check_processors(transformer)


def check_processors(transformer: nn.Module) -> None:
    """Raise ``ValueError`` for attention processors under which the transformer is not the network of its weights.

    Fused ones leave out the QK norm, and fail on the second attention of a block.  Those of PAG take a batch apart into parts
    that are not there; they stay where an error or an interrupt ended a PAG pipeline.
    """
    config = transformer.config
    fusible = config.qk_norm is None and not config.dual_attention_layers
    for name, processor in transformer.attn_processors.items():
        kind = type(processor).__name__
        if kind.startswith("PAG"):
            raise ValueError(
                f"{name} is a {kind}, which a run of a PAG pipeline that did not end has left there; "
                "call pipe.transformer.set_attn_processor(diffusers.models.attention_processor.JointAttnProcessor2_0())"
            )
        if kind == "FusedJointAttnProcessor2_0" and not fusible:
            raise ValueError(
                f"{name} is fused, and diffusers' fused attention drops the QK norm that this transformer needs; "
                "call pipe.transformer.unfuse_qkv_projections()"
            )


def check_own_forward(transformer: nn.Module) -> None:
    """Raise ``ValueError`` if someone else has replaced the transformer's forward; accelerate's mixed precision may have."""
    forward = ForwardSlot.of(transformer).forward
    if forward != own_forward(transformer) and autocast_around(forward) is None:
        name = getattr(forward, "__qualname__", type(forward).__name__)
        raise ValueError(f"the transformer's forward was replaced by {name}; undo that first")


def module_path_reason(transformer: nn.Module, model: MMDiT | None = None) -> str | None:
    """Why the transformer must run through its own modules, in one sentence; None if its weights can be packed.

    ``model``: a network packed from it before, which saves time.
    """
    for name, module in transformer.named_modules():
        where = name or "the transformer"
        if hasattr(module, "_hf_hook"):
            return f"{where} has an accelerate hook ({type(module._hf_hook).__name__}): its weights move"
        if module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule":
            return f"{where} is compiled"
        if getattr(module, "_chunk_size", None) is not None:
            return f"{where} runs its feed-forward in chunks"
    for name, hook in diffusers_hooks(transformer):
        return f"{name or 'the transformer'} has a {type(hook).__name__}: its weights move"
    return packing_obstacle(transformer, model, attached=True)


def diffusers_hooks(module: nn.Module) -> Iterator[tuple[str, object]]:
    """The hooks that diffusers keeps on a module and its parts, each with the name of its part."""
    for name, part in module.named_modules():
        registry = getattr(part, "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            yield name, hook


class PackedTransformer:
    """The packed network of a live transformer, sharing its weights; :meth:`unpack` gives them back their own storages.

    Both may happen in inference mode, whose tensors could never be trained again: the weights are made outside it.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, transformer: nn.Module):
        self.transformer = transformer
        places = {parameter: parameter.data_ptr() for parameter in transformer.parameters()}
        self.model = from_diffusers(transformer, share=True, attached=True)
        self._packed = [parameter for parameter, place in places.items() if parameter.data_ptr() != place]
        self.glance()

    def is_current(self) -> bool:
        """Whether the transformer still holds the weights that were packed, where they were."""
        return not unshared(self.model, self.transformer)

    def glance(self) -> None:
        """Take the transformer's modules as they are now for untouched."""
        self._glance = Glance(self.transformer)

    def is_untouched(self) -> bool:
        """Whether nothing at all has happened to the transformer's modules since the last glance: cheap at every call."""
        return self._glance.unchanged()

    @torch.inference_mode(False)
    @torch.no_grad()
    def unpack(self) -> None:
        """Undo the packing.  Values, layouts and parameter objects stay; one matrix at a time is held twice."""
        self.model = None
        for parameter in self._packed:
            if parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size():
                parameter.data = parameter.data.clone()
        self._packed = []
