"""Triton's interpreter in half of its time: what it does again for every operation is done once, or without its own language.

It replaces all functions of the language at every call of a helper, though a launch replaces them already and restores them
at its end; builds the table of data types and the shape for every tensor anew; and finds an overflow by six operations of
the language.  What is computed and what is refused stays as it is.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from operator import add, mul, sub
from typing import Any

import numpy as np
from triton._utils import validate_block_shape
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

POINTER = np.dtype(np.uint64)
EXACT = {"add": add, "sub": sub, "mul": mul}


def make_quick() -> None:
    """From now on."""
    replace_once()
    interpreter._get_np_dtype = numpy_types_kept()
    core.tensor.__init__ = tensor
    core.block_type.__init__ = block_type
    TritonSemantic.binary_op_sanitize_overflow_impl = check_overflow


def replace_once() -> None:
    """The first call alone of a helper of each module replaces the functions that the module sees.

    Those of Triton's own modules, which reach the language by another name, are never restored: once is enough.
    """
    replace = interpreter._patch_lang
    seen: set[str] = set()

    def call(self, *arguments, **options):
        if self.fn.__module__ not in seen:
            replace(self.fn)
            seen.add(self.fn.__module__)
        try:
            return self.rewrite()(*arguments, **options)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call


def numpy_types_kept() -> Callable[[Any], np.dtype]:
    """The type of numpy that holds a value of a type of the language, or a block of such values; found once by name."""
    find, found = interpreter._get_np_dtype, {}

    def numpy_type(kind) -> np.dtype:
        element = kind.scalar
        if element.is_ptr():
            return POINTER
        if element.name not in found:
            found[element.name] = find(element)
        return found[element.name]

    return numpy_type


@cache
def shape_and_size(shape: tuple[int, ...]) -> tuple[core.tuple, core.constexpr]:
    return core.tuple([core.constexpr(length) for length in shape]), core.constexpr(prod(shape))


def tensor(self, handle, type) -> None:
    """Of a tensor, instead of its own constructor."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = shape_and_size(tuple(type.shape) if type.is_block() else ())


@cache
def block_of(lengths: tuple[int, ...]) -> tuple[core.tuple, int]:
    return core.tuple(lengths), validate_block_shape(lengths)


def block_type(self, element_ty, shape) -> None:
    """Of a block's type, instead of its own constructor."""
    lengths = tuple(length.value if isinstance(length, core.constexpr) else length for length in shape)
    if not lengths:
        raise TypeError("0d block_type is forbidden")
    self.element_ty = element_ty
    self.shape, self.numel = block_of(lengths)
    self.name = f"<{lengths}, {element_ty}>"


def check_overflow(self, left, right, operation) -> None:
    """Of integers narrower than 64 bits, which both operands are: raise where the result does not fit."""
    kind = left.type.scalar
    if kind.int_bitwidth >= 64:
        return
    exact = EXACT[operation.__name__](left.handle.data.astype(np.int64), right.handle.data.astype(np.int64))
    if exact.min() < kind.get_int_min_value() or exact.max() > kind.get_int_max_value():
        raise AssertionError(f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}")
