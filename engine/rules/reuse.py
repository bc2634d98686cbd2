"""When a rule's directions ``c - k`` are computed, and by which order they are extrapolated at the calls between."""

from dataclasses import dataclass
from typing import Any

from ..numeric_input import counting_number, whole_number
from .integers import ranges_text

HIGHEST_ORDER = 3
NO_CALLS = "calls must be whole numbers, counted from 1"


@dataclass(frozen=True)
class Reuse:
    """Every ``refresh``-th call computes a direction, or the ``calls`` do; those between extrapolate what was kept.

    ``order``: 0 holds the last direction, p is the polynomial in the noise level through the last p + 1 of them, up to
    :data:`HIGHEST_ORDER`; while fewer are there, of lower order.  ``calls`` are those of the run, counted from 1, as a plan
    prints them.  Where every call computes its direction the order is 0.  The first call of a segment computes its direction in
    any case: nothing is kept from before a pause.
    """

    refresh: int = 1
    order: int = 0
    calls: tuple[int, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "refresh", counting_number(self.refresh, "refresh"))
        order = whole_number(self.order, "order must be a whole number")
        if not 0 <= order <= HIGHEST_ORDER:
            raise ValueError(f"order must lie between 0 and {HIGHEST_ORDER}, got {order}")
        object.__setattr__(self, "order", 0 if self.is_exact else order)  # nothing is extrapolated there
        if self.calls is None:
            return
        if self.refresh > 1:
            raise ValueError(f"calls say which calls compute a direction, and so does refresh {self.refresh}: give one of them")
        object.__setattr__(self, "calls", _checked_calls(self.calls))

    @property
    def is_exact(self) -> bool:
        """Whether every call computes its direction."""
        return self.refresh == 1 and self.calls is None

    def __str__(self) -> str:
        when = f"every {self.refresh} calls" if self.calls is None else f"at the calls {ranges_text(self.calls)}"
        return f"{when} with order {self.order}" if self.order else when


EXACT = Reuse()


def _checked_calls(calls: Any) -> tuple[int, ...]:
    """Distinct calls in order; ``TypeError`` or ``ValueError`` for anything else."""
    if isinstance(calls, str) or not hasattr(calls, "__iter__"):
        raise TypeError(f"{NO_CALLS}, got {calls!r}")
    numbers = sorted(whole_number(call, NO_CALLS) for call in calls)
    if not numbers:
        raise ValueError("calls must name at least one call, got none")
    if numbers[0] < 1:
        raise ValueError(f"calls are counted from 1, got {numbers[0]}")
    twice = [first for first, second in zip(numbers, numbers[1:], strict=False) if first == second]
    if twice:
        raise ValueError(f"calls must be distinct, got {twice[0]} twice")
    return tuple(numbers)
