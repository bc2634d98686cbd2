"""The reference functions through ``torch.compile``: C++ by Inductor on the CPU, Triton on CUDA.

Each function is compiled once for every layout of its operands, whole (a graph break raises) and for those sizes alone, so that
what runs is what the reference says, fused.  Matrix products and attention are left to the libraries, and gradients to the
functions of training: half of these write in place.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from types import FunctionType

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import adaln, combine, differentiable, gram, qkv, readout
from .triton_runtime import unavailable

LAYOUTS = 256  # that are kept of one function: a network's row ranges and streams are tens for each size of its latents
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
        gram.moments,
        gram.linear_combination,
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


def _check_unrecorded(name: str, operands: Iterable) -> None:
    if torch.is_grad_enabled() and any(isinstance(operand, Tensor) and operand.requires_grad for operand in operands):
        raise ValueError(f"the compiled {name} has no gradient, and an operand requires one: call it under torch.no_grad()")


def residual_modulated_norm2(
    h: Tensor, y: Tensor, gate: Tensor, *modulations: Tensor, eps: float = 1e-6, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`.adaln.residual_modulated_norm2` as two graphs: Inductor's C++ loses a buffer of the one (KeyError)."""
    _check_unrecorded("residual_modulated_norm2", (h, y, gate, *modulations, bias))
    h = compiled("gated_residual")(h, y, gate, bias)
    return h, *compiled("modulated_norm2")(h, *modulations, eps)


class Compiled:
    """A reference function compiled for each layout of operands that it meets; called with its arguments.

    Keeps the ``LAYOUTS`` that were used last.  Raises ``ValueError`` where autograd would record.
    """

    def __init__(self, function: FunctionType):
        self.function, self.__name__ = function, function.__name__
        self._made: OrderedDict[tuple, Callable] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *arguments, **options):
        leaves = tree_leaves((arguments, options))
        _check_unrecorded(self.__name__, leaves)
        return self._of(tuple(map(_layout, leaves)), tuple(options))(*arguments, **options)

    def _of(self, *key: tuple) -> Callable:
        with self._lock:  # threads of one engine, and of several, share it
            made = self._made.get(key)
            if made is None:
                made = self._made[key] = torch.compile(_separate(self.function), fullgraph=True, dynamic=False)
                if len(self._made) > LAYOUTS:
                    _release(self._made.popitem(last=False)[1])
            else:
                self._made.move_to_end(key)
            return made


def _release(made: Callable) -> None:
    """Let go of the graph and its guards, which PyTorch keeps with the code object, and that for ever."""
    from torch._dynamo.eval_frame import innermost_fn, reset_code

    reset_code(innermost_fn(made).__code__)


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
