"""Numbers of a rule that differ from sample to sample: fields that hold a tuple, one number for each sample of a batch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..numeric_input import number_or_each

Number = float | tuple[float, ...]  # one for all samples, or one for each, as a rule keeps them
Numbers = float | Sequence[float] | np.ndarray | Tensor  # as callers give them


def as_kept(numbers: Numbers) -> Number:
    """``numbers`` as a rule keeps them, which then checks each.  Raises ``ValueError`` for a list of none."""
    return number_or_each(numbers, lambda number: number)


def common_count(counts: Iterable[int | None]) -> int | None:
    """For how many samples all of ``counts`` are, None for numbers that all samples share.  ``ValueError`` if they differ."""
    distinct = sorted({count for count in counts if count is not None})
    if len(distinct) > 1:
        raise ValueError(f"a rule has numbers for {distinct[0]} samples and for {distinct[1]}: a batch has one size")
    return distinct[0] if distinct else None


def samples_of(holder: Any) -> int | None:
    """For how many samples the dataclass ``holder`` has numbers of their own, None where all share them."""
    values = (getattr(holder, field.name) for field in fields(holder))
    return common_count(len(value) for value in values if isinstance(value, tuple))


def picked(holder: Any, samples: int | slice) -> Any:
    """The dataclass ``holder`` with the number of one sample, or the numbers of some, in the place of those of all."""
    values = {field.name: getattr(holder, field.name) for field in fields(holder)}
    return replace(holder, **{name: value[samples] for name, value in values.items() if isinstance(value, tuple)})


def shared(number: Any) -> Any:
    """``number``, which all samples must have in common, else ``ValueError``."""
    if isinstance(number, tuple):
        raise ValueError(f"{shown(number)} are numbers of {len(number)} samples: take the rule of one, rule.of_sample(i)")
    return number


def each(number: Any, change: Callable[[float], Any]) -> Any:
    """``change(number)``, or the tuple of what it makes of each."""
    return tuple(map(change, number)) if isinstance(number, tuple) else change(number)


def shown(number: Any) -> str:
    """For a person to read: ``2``, or ``2, 4`` of two samples."""
    return ", ".join(f"{value:g}" for value in number) if isinstance(number, tuple) else f"{number:g}"
