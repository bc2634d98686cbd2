"""When an operation may write its result over a temporary of its own."""

from __future__ import annotations

import torch
from torch import Tensor


def reusable(buffer: Tensor, *operands: Tensor) -> Tensor | None:
    """``buffer`` as the ``out`` of an operation on ``operands``; None, a new tensor, where someone else plans the memory.

    That is autograd, which keeps what a backward pass reads, and a compiler, which fuses the operation away.
    """
    if torch.compiler.is_compiling():
        return None
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (buffer, *operands))
    return None if recorded else buffer
