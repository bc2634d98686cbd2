"""Conditions that a call draws: the pool of prompts that they come from, and the modulation of their rows alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .mmdit import TextCondition


@dataclass(frozen=True, eq=False, repr=False)
class PromptPool:
    """What B samples draw prompts from: ``pool``, of K classes, and ``plain`` [B], each sample's where none is drawn.

    ``own`` [B] int64 are the classes of the samples.  Labels 0 to K - 1 mean the pool, K means ``plain``.
    """

    pool: TextCondition
    plain: TextCondition
    own: Tensor

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, part: slice) -> "PromptPool":
        """That of a range of samples."""
        return PromptPool(self.pool, self.plain[part], self.own[part])

    def detach(self) -> "PromptPool":
        """The same values, outside any graph of autograd."""
        return PromptPool(self.pool.detach(), self.plain.detach(), self.own)

    @property
    def context(self) -> Tensor:
        """All prompts, the pool's and then the samples' own, [K + B, M, text_dim]."""
        return torch.cat([self.pool.context, self.plain.context.to(self.pool.context)])

    @property
    def pooled(self) -> Tensor:
        """[K + B, pooled_dim]"""
        return torch.cat([self.pool.pooled, self.plain.pooled.to(self.pool.pooled)])

    def rows_of(self, labels: Tensor) -> Tensor:
        """The row of :attr:`context` of each label [B]."""
        return rows_of(labels, len(self.pool))

    def drawn(self, labels: Tensor) -> TextCondition:
        """The prompts of labels [B]."""
        rows = self.rows_of(labels)
        return TextCondition(self.context.to(labels.device)[rows], self.pooled.to(labels.device)[rows])


def rows_of(labels: Tensor, classes: int) -> Tensor:
    """Labels [B] as rows of a pool of ``classes`` prompts and the samples' plain ones after them."""
    plain = torch.arange(classes, classes + len(labels), device=labels.device)
    return torch.where(labels == classes, plain, labels)


def write_drawn(
    out: Tensor, slots: tuple[int, ...], drawn: Mapping[int, Tensor], batch: int, values: Callable[[int], Tensor]
) -> None:
    """Put ``values(slot)`` [B, ...], computed once for each drawn slot, into the rows of ``out`` [J * B, ...] that take it."""
    for slot in dict.fromkeys(slot for slot in slots if slot in drawn):
        found = values(slot)
        for row, taken in enumerate(slots):
            if taken == slot:
                out[row * batch : (row + 1) * batch].copy_(found)
