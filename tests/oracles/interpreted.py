"""Cases for which Triton's interpreter takes long: on a GPU among the others, interpreted among the slow ones."""

from collections.abc import Iterable
from typing import Any

import pytest

from segue.kernels.catalogue import Case
from segue.kernels.triton_runtime import interpreting

SLOW_INTERPRETED = pytest.mark.slow if interpreting() else ()


def slow_interpreted(*values: Any, **options: Any):
    """A parameter set that is slow where kernels are interpreted."""
    return pytest.param(*values, marks=SLOW_INTERPRETED, **options)


def first_is_fast(values: Iterable[Any]) -> list[Any]:
    """Parameters of which the first alone is fast where kernels are interpreted."""
    first, *others = values
    return [first, *map(slow_interpreted, others)]


def once_fast(cases: Iterable[Case]) -> list[Any]:
    """Cases of the catalogue at several sizes: an operation is fast at the first of its sizes alone where it is interpreted."""
    met: dict[str, str] = {}
    return [
        case if met.setdefault(case.operation, case.size.name) == case.size.name else slow_interpreted(case) for case in cases
    ]
