"""The network that a live pipeline's transformer gives to a run: packed weights, its own modules, or a refusal."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.mmdit_diffusers import diffusers_spec, with_parameters_of
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.module_rows import ModuleNetwork, check_layout

from ..planning.plan import Plan
from .packing import PackedTransformer, check_transformer, diffusers_hooks, module_path_reason


class LiveTransformer:
    """Looks at the transformer of ``pipe`` whenever a run begins, so that whatever happened to it meanwhile takes effect.

    LoRA, offloading, quantisation, attention processors, device, dtype and the transformer itself may come and go.
    ``network`` is what the last run got, ``module_reason`` why that is no packed network (None: it is one), ``device`` and
    ``dtype`` where and in which precision it computes.  ``forget`` is called before a network is let go of: whoever made
    programs and graphs for it drops them there.
    """

    MODULES = ModuleNetwork

    def __init__(self, pipe: Any, forget: Callable[[], None]):
        self.pipe, self.forget = pipe, forget
        self.network: nn.Module | None = None
        self.module_reason: str | None = None
        self._packed: PackedTransformer | None = None
        self.device: torch.device
        self.dtype: torch.dtype

    @property
    def spec(self) -> MMDiTSpec:
        """That of the transformer which the pipeline holds now."""
        return diffusers_spec(self.pipe.transformer)

    @property
    def packed(self) -> bool:
        """Whether the last run got packed weights."""
        return self._packed is not None

    def check(self, transformer: nn.Module | None) -> None:
        """Raise ``TypeError`` or ``ValueError``, in one sentence, for a transformer that can run neither way."""
        check_transformer(transformer)

    def reason(self, own_reason: str | None = None) -> str | None:
        """Why a run that began now would go through the transformer's own modules; None: through packed weights.

        ``own_reason``: what the run itself brings.  Changes nothing; raises as :meth:`check`.
        """
        transformer = getattr(self.pipe, "transformer", None)
        self.check(transformer)
        model = self._packed.model if self._packed is not None and self._packed.transformer is transformer else None
        return own_reason or module_path_reason(transformer, model)

    def current(self, own_reason: str | None = None, place: tuple[torch.device, torch.dtype] | None = None) -> nn.Module:
        """The network for a run that begins now: the one at hand while it fits, else a new one in its place.

        ``own_reason`` as in :meth:`reason`; raises as :meth:`check`.  ``place``: device and dtype of the run's inputs, where
        they are known; packed weights know their own.
        """
        reason, transformer = self.reason(own_reason), self.pipe.transformer
        if reason is None or place is None:
            place = execution_device(transformer), transformer.dtype
        if not self._fits(reason, place):
            self.release()
            if reason is None:
                self._packed = PackedTransformer(transformer)
                self.network = self._packed.model
            else:
                self.network = self.MODULES(transformer, self.spec)
        self.module_reason, (self.device, self.dtype) = reason, place
        return self.network

    def _fits(self, reason: str | None, place: tuple[torch.device, torch.dtype]) -> bool:
        """Whether the network at hand can serve another run."""
        if reason is None:
            return self.packed and self._packed.transformer is self.pipe.transformer and self._packed.is_current()
        modules = isinstance(self.network, ModuleNetwork) and self.network.transformer is self.pipe.transformer
        return modules and (self.device, self.dtype) == place

    def is_current(self) -> bool:
        """Whether a run that began now would keep the network at hand.  Changes nothing of that."""
        packed = self._packed
        if packed is not None and packed.transformer is self.pipe.transformer and packed.is_untouched():
            return True
        try:
            fits = self._fits(self.reason(), (execution_device(self.pipe.transformer), self.pipe.transformer.dtype))
        except (TypeError, ValueError):
            return False
        if fits and packed is not None:
            packed.glance()  # what was done to it does not matter: not to be looked into at every call
        return fits

    def release(self) -> None:
        """Let go of the network; packed weights get storages of their own again."""
        self.forget()
        if self._packed is not None:
            self._packed.unpack()
        self.network = self._packed = None

    def networks_to_record(self) -> dict[str, nn.Module]:
        """The network to run where gradients are wanted: they reach the transformer's own parameters."""
        return {"main": with_parameters_of(self.network, self.pipe.transformer) if self.packed else self.network}

    def recorded_inputs(self) -> Iterator[Tensor]:
        """What gradients may be wanted of: the transformer's parameters, and what comes with a call."""
        yield from self.pipe.transformer.parameters()
        if isinstance(self.network, ModuleNetwork):
            yield from self.network.inputs.tensors()

    def check_plan(self, plan: Plan) -> None:
        """Raise ``ValueError`` for a rule that the path of the run cannot follow."""
        if not self.packed:
            check_layout(plan.layout(tuple(range(len(plan.branches)))))

    def forecast(self) -> str:
        """The path that a run would take if it began now, in one line; changes nothing."""
        try:
            return path_text(self.reason())
        except (TypeError, ValueError) as error:
            return f"path: none, because {error}"


def path_text(reason: str | None) -> str:
    """One line on the path of a run; ``reason`` as in :meth:`LiveTransformer.reason`."""
    if reason is None:
        return "path: packed weights, shared with the pipeline"
    return f"path: the transformer's own modules, because {reason}"


def hook_device(module: nn.Module) -> torch.device | None:
    """Where the offload hooks of a pipeline's component bring it to compute; None if it has no such hooks."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    for _, hook in diffusers_hooks(module):
        device = getattr(getattr(hook, "config", None), "onload_device", None)
        if device is not None:
            return torch.device(device)
    return None


def execution_device(module: nn.Module) -> torch.device:
    """Where a component of a pipeline computes: its parameters may lie elsewhere while it rests."""
    return hook_device(module) or module.device
