"""How much memory runs that share forwards take: known before any of it is taken."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from segue.models.spec import ModelSpec

BLOCK_WIDTH = 8  # numbers of its width that a block holds of a token beside its state: 4 of an MLP, queries, keys, values, sums
SHARE = 0.8  # of what is free, or on a CPU of what there is


def bytes_of(make: Callable[[], Any]) -> int:
    """The bytes of the tensors that ``make()`` has as attributes: it is made, of tensors without storage."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(vars(make()).values()))


def passed_on(spec: ModelSpec, tokens: int, element: int) -> int:
    """The bytes that the blocks of a network hold of so many tokens of its rows, ``element`` bytes a number."""
    return BLOCK_WIDTH * spec.dim * tokens * element


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif hasattr(value, "rows") and isinstance(value.rows, Tensor):
            yield value.rows


def usual_limit(device: torch.device) -> int:
    """The bytes that a scheduler may take of a device unless it is told otherwise."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    return int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
