"""Descriptors of the tensor memory accelerator: where a chip has it, a kernel asks for a whole tile of an operand at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch_lookup import table_architecture
from .triton_runtime import TensorDescriptor, architecture

CHIPS = ("sm_90", "sm_100")  # the architectures of the launch table whose chips have it
ALIGNMENT = 16  # bytes, of the address and of every stride but the last


def has_descriptors(device: torch.device) -> bool:
    """Whether kernels on ``device`` read operands by descriptor."""
    return table_architecture(architecture(device)) in CHIPS


def describable(x: Tensor) -> bool:
    """Whether ``x``, whose last dimension is contiguous, lies as a descriptor needs it."""
    strides = [stride for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    places = (x.data_ptr(), *(stride * x.element_size() for stride in strides))
    return min(strides, default=1) > 0 and not any(place % ALIGNMENT for place in places)


def descriptor(x: Tensor, block: list[int]) -> Any:
    """That of ``x``, read in blocks of ``block``; elements beyond its end are read as zeros."""
    of_one = ALIGNMENT // x.element_size()  # the stride of a dimension of one says nothing
    strides = [stride if size > 1 else of_one for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], block)
