"""The forward of a transformer that rules are attached to: one for all pipelines that share it, each with a rule of its own."""

from typing import Any, Protocol

from torch import nn

from .forward_slot import ForwardSlot, GuidedForward
from .mixed_precision import innermost
from .running_pipeline import running_pipeline


class Member(Protocol):
    """What is attached to a pipeline."""

    pipe: Any

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the transformer gives while ``pipe`` runs."""


class SharedForward:
    """Stands in a transformer's forward while it has ``members``, and hands each call to that of the pipeline that runs.

    ``replaced`` is the forward in whose place it is: the transformer's own, or accelerate's mixed precision around that.
    """

    def __init__(self, transformer: nn.Module):
        slot = ForwardSlot.of(transformer)
        self.transformer, self.replaced = transformer, slot.forward
        self.members: list[Member] = []
        slot.put(GuidedForward(self.forward))

    @classmethod
    def of(cls, transformer: nn.Module) -> "SharedForward | None":
        """That of a transformer; None where nothing is attached to it."""
        forward = ForwardSlot.of(transformer).forward
        return forward.func.__self__ if isinstance(forward, GuidedForward) else None

    @classmethod
    def join(cls, transformer: nn.Module, member: Member) -> "SharedForward":
        """The forward of a transformer with one member more."""
        shared = cls.of(transformer) or cls(transformer)
        shared.members.append(member)
        return shared

    def leave(self, member: Member) -> None:
        """Let go of a member; after the last, the transformer has the forward that was replaced.

        Raises ``ValueError`` where someone has wrapped it since: a wrapper would be lost with it.
        """
        if self.members == [member]:
            slot = ForwardSlot.of(self.transformer)
            if SharedForward.of(self.transformer) is self:
                slot.put(self.replaced)
            elif isinstance(innermost(slot.forward), GuidedForward):
                raise ValueError("the transformer's forward was wrapped after segue.attach: take that wrapper off first")
        self.members.remove(member)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the member of the running pipeline gives; ``ValueError`` where there are several and no pipeline runs."""
        running, _ = running_pipeline()
        own = [member for member in self.members if member.pipe is running]
        if not own and running is None and len(self.members) > 1:
            raise ValueError(
                f"{len(self.members)} pipelines with this transformer are attached, and none of them calls it: a loop of one's "
                "own cannot tell which rule is meant; call segue.detach on all but one"
            )
        return (own or self.members)[0].forward(*inputs, **options)
