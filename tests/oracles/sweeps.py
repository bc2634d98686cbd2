"""Sweeps of which `make test` runs the beginning, and `make test-all` everything."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_fast(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Values of a parameter of which the first ``count`` are fast, the others slow."""
    values = list(values)
    return [*values[:count], *(pytest.param(value, marks=pytest.mark.slow) for value in values[count:])]
