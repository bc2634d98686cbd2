"""Where the forward of a live module is kept under the wrappers that offload hooks put around it.

accelerate and diffusers hook a module by replacing its ``forward`` with a wrapper that remembers the one before.  Replacing
the innermost one keeps their hooks firing, whichever was put on first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ForwardSlot:
    """The attribute ``name`` of ``owner`` holds the innermost forward of a module."""

    owner: Any
    name: str

    @classmethod
    def of(cls, module: nn.Module) -> "ForwardSlot":
        """Follow the wrappers of accelerate's and diffusers' hooks inwards."""
        slot = cls(module, "forward")
        while True:
            # wrappers are partials of a function in the hook library; anything else is the forward itself
            library = getattr(getattr(slot.forward, "func", None), "__module__", None) or ""
            if library == "accelerate.hooks" and "_old_forward" in vars(module):
                slot = cls(module, "_old_forward")
            elif library.startswith("diffusers.hooks.") and getattr(module, "_diffusers_hook", None) is not None:
                reference = module._diffusers_hook._fn_refs[0]  # the first hook put on is the innermost
                slot = cls(reference, "forward" if reference.original_forward is None else "original_forward")
            else:
                return slot

    @property
    def forward(self) -> Callable:
        return getattr(self.owner, self.name)

    def put(self, forward: Callable) -> None:
        """Replace the forward; the module's own is put back by taking the replacement away."""
        if isinstance(self.owner, nn.Module) and self.name == "forward" and own_forward(self.owner) == forward:
            vars(self.owner).pop("forward", None)
        else:
            setattr(self.owner, self.name, forward)


def own_forward(module: nn.Module) -> Callable:
    """The forward that the class of ``module`` gives it."""
    return type(module).forward.__get__(module)


@contextmanager
def own_forward_in_place(module: nn.Module) -> Iterator[None]:
    """The module with its own forward for a while, for code that looks for replaced ones."""
    slot = ForwardSlot.of(module)
    replacement = slot.forward
    slot.put(own_forward(module))
    try:
        yield
    finally:
        slot.put(replacement)
