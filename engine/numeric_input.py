"""Numbers as callers give them: Python's and NumPy's alike, truth values never."""

import operator
from numbers import Real
from typing import Any

import torch


def whole_number(value: Any, requirement: str) -> int:
    """``value`` as an int.  Raises ``TypeError`` with the sentence ``requirement`` and the value."""
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{requirement}, got {value!r}") from None


def real_number(value: Any, requirement: str) -> float:
    """``value`` as a float.  Raises as :func:`whole_number`, and ``ValueError`` for an int that no float holds."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{requirement}, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{requirement}, got {value}") from None
