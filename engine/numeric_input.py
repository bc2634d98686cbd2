"""Numbers as callers give them: Python's, NumPy's and what 0-d tensors and arrays hold; truth values never."""

import math
import operator
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

SEEDS = 2**64  # as many as ComfyUI and torch.Generator take


def scalar(value: Any) -> Any:
    """The number that a 0-d tensor or array holds, read from its device; anything else as it is."""
    return value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value


def whole_number(value: Any, requirement: str) -> int:
    """``value`` as an int.  Raises ``TypeError`` with the sentence ``requirement`` and the value."""
    number = scalar(value)
    try:
        if isinstance(number, bool | Tensor | np.ndarray):
            raise TypeError
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{requirement}, got {value!r}") from None


def counting_number(value: Any, name: str) -> int:
    """``value`` as an int of at least 1.  Raises ``TypeError`` or ``ValueError`` with ``name`` and the value."""
    number = whole_number(value, f"{name} must be a whole number")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def real_number(value: Any, requirement: str) -> float:
    """``value`` as a float.  Raises as :func:`whole_number`, and ``ValueError`` for an int that no float holds."""
    number = scalar(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{requirement}, got {value!r}")
    try:
        return float(number)
    except OverflowError:
        raise ValueError(f"{requirement}, got {value}") from None


LARGEST = float(np.finfo(np.float32).max)  # of what tables on the device hold


def table_number(value: Any, name: str) -> float:
    """``value`` as a float that fp32 holds, finite.  Raises as :func:`real_number`, and ``ValueError`` for another."""
    number = real_number(value, f"{name} must be a finite number")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return held_in_fp32(number, name)


def held_in_fp32(number: float, name: str) -> float:
    """``number`` unless it is finite and no longer so in fp32: ``ValueError``."""
    if LARGEST < abs(number) < math.inf:
        raise ValueError(f"{name} must lie within {LARGEST:.3g} of zero, as far as fp32 reaches, got {number:g}")
    return number


def number_or_each(value: Any, check: Callable[[Any], float]) -> float | tuple[float, ...]:
    """``check(value)``, or of a list, a tuple, a 1-D array or tensor ``check`` of each entry: one for every sample of a batch.

    Raises as ``check``, and ``ValueError`` for an empty one.
    """
    if not isinstance(value, list | tuple) and getattr(value, "ndim", None) != 1:
        return check(value)
    if not len(value):
        raise ValueError(f"one number for each sample of a batch is at least one, got {value!r}")
    return tuple(map(check, value if isinstance(value, list | tuple) else value.tolist()))


def number_from_text(text: str) -> float:
    """A number; whether it is finite and in range is for its reader to say.  Raises ``ValueError``."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, got {text!r}") from None


def check_seed(seed: int) -> int:
    """``seed`` if it lies in [0, 2^64), else ``ValueError``."""
    if not 0 <= seed < SEEDS:
        raise ValueError(f"a seed must lie in [0, 2^64), got {seed}")
    return seed
