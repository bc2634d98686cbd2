"""The reference functions through ``torch.compile``: C++ by Inductor on the CPU, Triton on CUDA.

Each function is compiled once for every layout of its operands, whole (a graph break raises) and for those sizes alone, so that
what runs is what the reference says, fused.  Matrix products and attention are left to the libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import adaln, combine, corrections, differentiable, qkv, readout
from .triton_runtime import unavailable

FUNCTIONS = {
    function.__name__: function
    for function in (
        adaln.modulated_norm,
        adaln.modulated_norm2,
        adaln.gated_residual,
        adaln.residual_modulated_norm,
        adaln.residual_modulated_norm2,
        adaln.residual2_modulated_norm,
        qkv.split_heads_norm,
        differentiable.joint_heads_norm,  # no graph may write to a place with gaps
        readout.combine_then_project,
        readout.project,
        readout.readout_update,
        combine.combine_branches,
        combine.solver_update,
        corrections.cfg_zero_star,
        corrections.rescale,
        corrections.adaptive_projection,
    )
}


def obstacle(device: torch.device) -> str | None:
    """Why nothing can be compiled for ``device``; None when it can."""
    if device.type == "cuda":
        return unavailable(device)
    return _without_compiler() if device.type == "cpu" else f"Inductor compiles for the CPU and CUDA, and this is {device.type}"


@cache
def _without_compiler() -> str | None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "no C++ compiler was found; install one, or name it in the environment variable CXX"
    return None


def residual_modulated_norm2(
    h: Tensor, y: Tensor, gate: Tensor, *modulations: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`.adaln.residual_modulated_norm2` as two graphs: Inductor's C++ loses a buffer of the one (KeyError)."""
    h = compiled("gated_residual")(h, y, gate, bias)
    return h, *compiled("modulated_norm2")(h, *modulations, eps)


class Compiled:
    """A reference function compiled for each layout of operands that it meets; called with its arguments."""

    def __init__(self, function: FunctionType):
        self.function, self.__name__ = function, function.__name__
        self._made: dict[tuple, Callable] = {}

    def __call__(self, *arguments, **options):
        key = tuple(map(_layout, tree_leaves((arguments, options)))), tuple(options)
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = torch.compile(_separate(self.function), fullgraph=True, dynamic=False)
        return made(*arguments, **options)


def _layout(operand) -> object:
    """What a compiled function depends on: of a tensor everything but its values."""
    if isinstance(operand, Tensor):
        return operand.shape, operand.stride(), operand.dtype, operand.device
    return operand


def _separate(function: FunctionType) -> FunctionType:
    """The function with a code object of its own: PyTorch counts compilations by code object, and gives up after eight."""
    code = function.__code__.replace()
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@cache
def compiled(operation: str) -> Callable:
    """The compiled form of an operation of ``FUNCTIONS``; engines share it."""
    return residual_modulated_norm2 if operation == "residual_modulated_norm2" else Compiled(FUNCTIONS[operation])
