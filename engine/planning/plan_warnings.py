"""What is odd about a plan as Python warnings, at the line outside this package that asked for the run."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Plan

BETWEEN = ("segue", "diffusers", "torch", "contextlib")  # whose frames lie between a user's line and a run


class PlanWarning(UserWarning):
    """Something in a run may not be meant: an unguided end, a window without steps, an argument without effect."""


def warn_of(plan: "Plan") -> None:
    """Warn of all that is odd about a plan; of each thing once from one line, as Python's filters have it."""
    for text in plan.warnings:
        warn_caller(text)


@contextmanager
def already_told() -> Iterator[None]:
    """For a program that shows a plan's oddities by itself; not beside other threads, whose warnings it silences too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)
        yield


def warn_caller(text: str) -> None:
    """A :class:`PlanWarning` at the innermost line that belongs neither to this package nor to those that call it for users."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, PlanWarning, stacklevel=level)
