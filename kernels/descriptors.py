"""Descriptors of the tensor memory accelerator: where a chip has it, a kernel asks for a whole tile of an operand at once."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .launch_lookup import table_architecture
from .triton_runtime import TensorDescriptor, architecture, jit, launch, observe_launches, tl, tracing

logger = logging.getLogger("segue")
CHIPS = ("sm_90", "sm_100")  # the architectures of the launch table whose chips have it
ALIGNMENT = 16  # bytes, of the address and of every stride but the last


def has_descriptors(device: torch.device) -> bool:
    """Whether kernels on ``device`` read operands by descriptor; a device is tried once, and logged where it fails."""
    if TensorDescriptor is None or table_architecture(architecture(device)) not in CHIPS:
        return False
    if tracing() or device.type != "cuda":
        return True
    return _works(torch.cuda.current_device() if device.index is None else device.index)


@jit()
def copy_tile(p_x, p_out, SIDE: tl.constexpr):
    """A square tile, read by descriptor."""
    o_tile = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tl.store(p_out + o_tile, p_x.load([0, 0]))


@cache
def _works(index: int) -> bool:
    """Whether a tile can be asked for; waits for the device, once in a process."""
    device = torch.device("cuda", index)
    x, out = torch.zeros(2, 16, 16, dtype=torch.float16, device=device)
    try:
        with observe_launches():  # apart from what a caller observes: the trial is no part of its work
            launch(copy_tile, (1,), {"p_x": descriptor(x, [16, 16]), "p_out": out, "SIDE": 16}, 1)
        torch.cuda.synchronize(device)
    except Exception as error:  # what a driver or a compiler raises
        logger.warning("kernels read by pointers on %s, as by descriptor they cannot: %s", device, error)
        return False
    return True


def describable(x: Tensor) -> bool:
    """Whether ``x``, whose last dimension is contiguous, lies as a descriptor needs it.

    Every stride is a multiple of the one inside it, and long enough for what lies inside it (CUDA driver API,
    ``cuTensorMapEncodeTiled``).
    """
    if not x.numel():
        return False
    strides = _strides(x)
    placed = (x.data_ptr(), *(stride * x.element_size() for stride in strides[:-1]))
    nested = zip(strides, strides[1:], x.shape[1:], strict=False)
    return not any(place % ALIGNMENT for place in placed) and all(
        inner and outer >= inner * size and not outer % inner for outer, inner, size in nested
    )


def descriptor(x: Tensor, block: list[int]) -> Any:
    """That of ``x``, read in blocks of ``block``; elements beyond its end are read as zeros."""
    return TensorDescriptor(x, list(x.shape), _strides(x), block)


def _strides(x: Tensor) -> list[int]:
    """In elements; of a dimension of one, whose own says nothing, that of a dense tensor."""
    found = [1]
    for size, inside, stride in zip(x.shape[-2::-1], x.shape[:0:-1], x.stride()[-2::-1], strict=True):
        found.append(stride if size > 1 else found[-1] * inside)
    return found[::-1]
