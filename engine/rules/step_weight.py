"""Weights that need the noise level where a step ends beside the one where it starts."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from ..numeric_input import real_number

RETURNED = "a function of sigma and next_sigma must return a number"


@dataclass(frozen=True)
class StepWeight:
    """A weight as a function of both levels of a step, less ``offset``; ``function(sigma, next_sigma)``."""

    function: Callable[[float, float], float]
    offset: float = 0.0

    def __call__(self, sigma: float, next_sigma: float) -> float:
        return real_number(self.function(sigma, next_sigma), RETURNED) - self.offset


@dataclass(frozen=True)
class PlusPlus:
    """The scale of classifier-free guidance whose Euler step is that of CFG++ with the share ``scale``."""

    scale: float

    def __call__(self, sigma: float, next_sigma: float) -> float:
        """``scale * sigma (1 - next_sigma) / (sigma - next_sigma)``; a step of no length is unguided."""
        return 1.0 if sigma == next_sigma else self.scale * sigma * (1 - next_sigma) / (sigma - next_sigma)


def takes_two_levels(function: Callable) -> bool:
    """Whether ``function`` has two parameters that must be given: sigma and next_sigma."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [own for own in parameters if own.kind in kinds and own.default is inspect.Parameter.empty]
    return len(needed) == 2
