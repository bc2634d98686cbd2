"""A live transformer for an engine: runs go around its forward, and the offload hooks on it still fire.

Offload hooks wrap the forward of the transformer as a whole: model offload brings its weights to the device there, group
offload those outside its blocks.  An attachment runs inside that forward; an engine has to enter it.
"""

import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.mmdit_diffusers import has_hooks
from segue.models.module_rows import ModuleNetwork, ModuleRows

from .forward_slot import call_under_hooks, wrapping_hooks
from .live_transformer import LiveTransformer
from .packing import check_own_forward
from .shared_forward import SharedForward


class HookedNetwork(ModuleNetwork):
    """A :class:`ModuleNetwork` whose calls happen inside the transformer's own."""

    def rows(self, batch: int, height: int, width: int, **capacity: Any) -> "HookedRows":
        """The row-batched forward for B samples; see :class:`ModuleRows`."""
        return HookedRows(self, batch, height, width, **capacity)


class HookedRows(ModuleRows):
    """The forward of a :class:`HookedNetwork`."""

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """As :meth:`ModuleRows.forward`; under hooks that move weights, threads take turns."""
        return self._inside(partial(super().forward, *inputs, **options))

    def recorded(self, *inputs: Any, **options: Any) -> list[Tensor]:
        """As :meth:`ModuleRows.recorded`, in the same place."""
        outputs = self._inside(lambda: torch.stack(super(HookedRows, self).recorded(*inputs, **options)))
        return list(outputs)

    def _inside(self, function: Callable[[], Tensor]) -> Tensor:
        transformer = self.network.transformer
        with turns(transformer) if wrapping_hooks(transformer) else nullcontext():
            return call_under_hooks(transformer, function)


def turns(transformer: nn.Module) -> threading.RLock:
    """The lock of whoever moves the weights of a transformer, or of the components that are offloaded for it."""
    with _turns_lock:
        return _turns.setdefault(transformer, threading.RLock())


_turns: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_turns_lock = threading.Lock()


class AroundForward(LiveTransformer):
    """The live transformer of an engine."""

    MODULES = HookedNetwork

    def check(self, transformer: nn.Module) -> None:
        """Also refuses what an engine would silently leave out: a replaced forward, and hooks on the whole transformer.

        An attachment is no obstacle: an engine brings rules of its own.
        """
        super().check(transformer)
        if SharedForward.of(transformer) is None:
            check_own_forward(transformer)
        if has_hooks(transformer):
            raise ValueError(
                "the transformer has forward hooks, which an engine does not call with the pipeline's inputs; "
                "put them on its blocks, or use segue.attach"
            )
