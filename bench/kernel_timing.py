"""Timing one operation: several sets of arguments so that no cache holds them, many launches in one measurement."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from segue.kernels.contracts import OF_BACKENDS, judges_bias, shared_dimensions
from segue.kernels.judgement import bias

from .correctness import HALF_FACTOR, Gate, full_single, relative_error

CACHE_BYTES = {"cuda": 256 * 2**20, "cpu": 64 * 2**20}  # well past the last cache of either
MAX_SETS = 64
# The error of the reference itself can be zero (a copy, a gather, random bits made normal); then a few roundings of the
# output are allowed, in fp32 those of a logarithm, a root and a cosine on the way to it.
FLOOR = {torch.float32: 16 * 2.0**-24, torch.bfloat16: 4 * 2.0**-9, torch.float16: 4 * 2.0**-12}


def argument_sets(make: Callable[[int], tuple[Any, ...]], function: Callable, device: torch.device) -> list[tuple[Any, ...]]:
    """Enough independent argument tuples (by seed) that they and what ``function`` returns do not fit a cache, at least two."""
    first = make(0)
    size = sum(_storages((first, function(*first))).values())
    count = min(MAX_SETS, max(2, -(-CACHE_BYTES[device.type] // max(size, 1))))
    return [first, *(make(seed) for seed in range(1, count))]


def _storages(values: Any) -> dict[int, int]:
    """Bytes of every tensor by address: a result that is an argument written in place counts once."""
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}


def kernel_gate(
    kernel: Callable,
    reference: Callable,
    arguments: tuple[Any, ...],
    name: str,
    operation: str | None = None,
    backend: str = "triton",
) -> Gate:
    """A kernel against the reference in fp64: at most twice the error that the reference makes in the same precision, and
    no bias beyond chance and beyond that of tensor cores.

    Where the contract of ``operation`` and ``backend`` is approximate sums, it states the bound, and a bias is part of it;
    where the reference has no fp64 (noise, quantised rows), none can be told.

    Everything returned and every argument written in place is compared; inputs are cloned.
    """
    with full_single():
        exact = _outcome(reference, tree_map(_as_double, arguments))
        plain = _outcome(reference, tree_map(_cloned, arguments))
        tried = _outcome(kernel, tree_map(_cloned, arguments))
    worst = Gate(0.0, 1.0, name)
    for value, eager, wanted in zip(tried, plain, exact, strict=True):
        bound = max(HALF_FACTOR * relative_error(eager, wanted), FLOOR.get(value.dtype, 2.0**-3))
        promised = OF_BACKENDS.get((operation or "", backend))
        approximate = promised is not None and promised.bound is not None
        gate = Gate(relative_error(value, wanted), max(bound, promised.bound) if approximate else bound, name)
        leaning_counts = not approximate and wanted.dtype == torch.float64 and judges_bias(operation, value, arguments)
        if gate.passed and leaning_counts:
            leaning = bias(value, wanted, shared_dimensions(operation, value.dim()))
            if not leaning.passed:
                gate = Gate(leaning.ratio, leaning.bound, f"bias of {name}")
        if not gate.passed or gate.error / gate.bound > worst.error / worst.bound:
            worst = gate
        if not gate.passed:
            break
    return worst


def _outcome(function: Callable, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Floating-point results, then floating-point arguments after the call, in fp64."""
    returned = function(*arguments)
    leaves = [*tree_leaves(returned), *tree_leaves(arguments)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _as_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else _cloned(value)
