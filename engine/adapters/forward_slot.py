"""Where the forward of a live module is kept under the wrappers that offload hooks put around it.

accelerate and diffusers hook a module by replacing its ``forward`` with a wrapper that remembers the one before.  Replacing
the innermost one keeps their hooks firing, whichever was put on first.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ForwardSlot:
    """The attribute ``name`` of ``owner`` holds a forward of a module, the innermost one or that of a wrapper."""

    owner: Any
    name: str

    @classmethod
    def of(cls, module: nn.Module) -> "ForwardSlot":
        """Follow the wrappers of accelerate's and diffusers' hooks inwards."""
        return [cls(module, "forward"), *(slot for slot, _ in _wrappers(module))][-1]

    @property
    def forward(self) -> Callable:
        return getattr(self.owner, self.name)

    def put(self, forward: Callable) -> None:
        """Replace the forward; the module's own is put back by taking the replacement away."""
        if isinstance(self.owner, nn.Module) and self.name == "forward" and own_forward(self.owner) == forward:
            vars(self.owner).pop("forward", None)
        else:
            setattr(self.owner, self.name, forward)


MARK = "_segue_attachment"  # the attribute of a pipeline that holds its attachment


class GuidedForward(partial):
    """What an attachment puts in the place of a transformer's forward."""

    func: Any  # a method of the attachment

    def __deepcopy__(self, memo: dict) -> Any:
        """The copied transformer's own forward: a copy is not attached."""
        return own_forward(memo[id(self.func.__self__.transformer)])


def _wrappers(module: nn.Module) -> Iterator[tuple[ForwardSlot, tuple[Any, ...]]]:
    """From outside inwards, where each library keeps the forward that it wrapped, and its hooks, the outer ones first.

    What is yielded as a hook has ``pre_forward`` and ``post_forward``, as the libraries' wrappers call them.
    """
    slot = ForwardSlot(module, "forward")
    while True:
        # wrappers are partials of a function in the hook library; anything else is the forward itself
        library = getattr(getattr(slot.forward, "func", None), "__module__", None) or ""
        if library == "accelerate.hooks" and "_old_forward" in vars(module):
            slot, hooks = ForwardSlot(module, "_old_forward"), (module._hf_hook,)
        elif library.startswith("diffusers.hooks.") and getattr(module, "_diffusers_hook", None) is not None:
            hooks = tuple(reversed(module._diffusers_hook._fn_refs))  # the first hook put on is the innermost
            slot = ForwardSlot(hooks[-1], "forward" if hooks[-1].original_forward is None else "original_forward")
        else:
            return
        yield slot, hooks


def own_forward(module: nn.Module) -> Callable:
    """The forward that the class of ``module`` gives it."""
    return type(module).forward.__get__(module)


def wrapping_hooks(module: nn.Module) -> list[Any]:
    """The offload hooks around the forward of a module as a whole, the outer ones first."""
    return [hook for _, hooks in _wrappers(module) for hook in hooks]


def call_under_hooks(module: nn.Module, function: Callable[[], Tensor]) -> Tensor:
    """What ``function`` returns, called in the place of a module's forward: the hooks around that act before and after.

    Nothing of the module is changed, so other threads may call it meanwhile.
    """
    hooks = wrapping_hooks(module)
    for hook in hooks:
        hook.pre_forward(module)
    with torch.no_grad() if any(getattr(hook, "no_grad", False) for hook in hooks) else nullcontext():
        output = function()
    for hook in reversed(hooks):
        output = hook.post_forward(module, output)
    return output
