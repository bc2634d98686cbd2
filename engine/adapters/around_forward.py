"""A live transformer for an engine: runs go around its forward, and the offload hooks on it still fire.

Offload hooks wrap the forward of the transformer as a whole: model offload brings its weights to the device there, group
offload those outside its blocks.  An attachment runs inside that forward; an engine has to enter it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.mmdit import TextCondition
from segue.models.module_rows import ModuleNetwork, ModuleRows

from .diffusers import attachment_of
from .forward_slot import ForwardSlot
from .live_transformer import LiveTransformer
from .packing import check_own_forward


class HookedNetwork(ModuleNetwork):
    """A :class:`ModuleNetwork` whose calls happen inside the transformer's own."""

    def rows(self, batch: int, height: int, width: int, **capacity: Any) -> "HookedRows":
        """The row-batched forward for B samples; see :class:`ModuleRows`."""
        return HookedRows(self, batch, height, width, **capacity)


class HookedRows(ModuleRows):
    """The forward of a :class:`HookedNetwork`; prompts and times are embedded in its first call, where the weights are."""

    _given: tuple[Tensor, Sequence[TextCondition]] | None = None

    def load(self, times: Tensor, conditions: Sequence[TextCondition]) -> None:
        """As :meth:`ModuleRows.load`, put off to the next :meth:`forward`."""
        self._given = times, conditions

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """As :meth:`ModuleRows.forward`."""
        return call_inside(self.network.transformer, partial(self._forward, *inputs, **options))

    def _forward(self, *inputs: Any, **options: Any) -> Tensor:
        if self._given is not None:
            super().load(*self._given)
            self._given = None
        return super().forward(*inputs, **options)


@torch.no_grad()
def call_inside(module: nn.Module, function: Callable[[], Tensor]) -> Tensor:
    """What ``function`` returns, called in the place of a module's innermost forward, under the hooks that wrap it."""
    slot = ForwardSlot.of(module)
    forward = slot.forward
    slot.put(function)
    try:
        return module.forward()
    finally:
        slot.put(forward)


class AroundForward(LiveTransformer):
    """The live transformer of an engine."""

    MODULES = HookedNetwork

    def check(self, transformer: nn.Module) -> None:
        """Also refuses what an engine would silently leave out: a replaced forward, and hooks on the whole transformer.

        An attachment is no obstacle: an engine brings rules of its own.
        """
        super().check(transformer)
        if attachment_of(transformer) is None:
            check_own_forward(transformer)
        if transformer._forward_hooks or transformer._forward_pre_hooks:
            raise ValueError(
                "the transformer has forward hooks, which an engine does not call with the pipeline's inputs; "
                "put them on its blocks, or use segue.attach"
            )
