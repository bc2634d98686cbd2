"""What a correction is: a change of the guided prediction that looks at norms, angles or frequencies within each sample.

A correction is a rule without terms, so it is added to one: ``CFG(7.0) + Rescale(0.7)``.  Several may follow one another.
Those of the reference (:mod:`.reference_corrections`) change the direction ``D = c - u`` and its weight, where ``u`` is the one
branch with another condition: first one that cuts it by frequencies, then the others.  Those of the whole
(:mod:`.guided_corrections`) change the prediction that all terms add up to; then comes one that compares it with calls
before, at last what scales it in the solver's step (:mod:`.solver_corrections`).  Each of their numbers is one for all
samples, or one for each sample of the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np

from ..numeric_input import held_in_fp32, number_or_each, real_number
from .per_sample import samples_of, shown

Space = Literal["output", "velocity", "x0"]
FREQUENCIES, REFERENCE, WHOLE, HISTORY, REFINEMENT, STEP = range(6)  # places: a correction acts on what those before leave


@dataclass(frozen=True, eq=False)
class CallLevels:
    """Where the calls of a run stand: noise levels ``sigma`` and ``next_sigma`` [N] of a step's start and end, and its number.

    ``step`` [N] counts from 0 to ``steps - 1``.
    """

    sigma: np.ndarray
    next_sigma: np.ndarray
    step: np.ndarray
    steps: int

    @property
    def position(self) -> np.ndarray:
        """From 0 at the first step to 1 at the last; 0 where there is one alone."""
        return self.step / max(1, self.steps - 1)


@dataclass(frozen=True)
class Correction:
    """What is done to a guided prediction beyond adding terms; formulas in :mod:`segue.engine.running.corrections`.

    ``name``: of the rule whose text it is, with the fields as options.  ``place``: its turn among others.  ``space``: of the
    predictions it looks at; ``output`` is the network's own.  ``memory``: what it keeps from call to call, a state or a number
    for each sample.  ``alone``: it acts on an unguided prediction too.  ``falling``: it is for runs whose levels fall.
    ``zero_steps``: the first steps have no velocity.
    """

    name: ClassVar[str] = ""
    place: ClassVar[int] = REFERENCE
    space: ClassVar[Space] = "output"
    memory: ClassVar[Literal["", "state", "number"]] = ""
    alone: ClassVar[bool] = False
    falling: ClassVar[bool] = False
    zero_steps = cast("int | tuple[int, ...]", 0)

    def __str__(self) -> str:
        numbers = ", ".join(f"{field.name} {shown(getattr(self, field.name))}" for field in fields(self))
        return f"{type(self).__name__} ({numbers})" if numbers else type(self).__name__

    @property
    def needs_reference(self) -> bool:
        """Whether it acts on the one term that has another condition."""
        return self.place <= REFERENCE

    @property
    def has_memory(self) -> bool:
        """Whether it depends on the calls before."""
        return bool(self.memory)

    @property
    def needs_schedule(self) -> bool:
        """Whether it has no meaning at one noise level alone."""
        return self.has_memory or any(np.atleast_1d(self.zero_steps))

    @property
    def constants(self) -> dict[str, Any]:
        """The fields that a program is specialised on, which are in no table."""
        return {}

    @property
    def kind(self) -> tuple[Any, ...]:
        """What a program is specialised on."""
        return type(self), *self.constants.values()

    @classmethod
    def neutral(cls) -> Self | None:
        """The one that changes nothing; None where none of the kind does, unless the reference weighs nothing."""
        return None

    def never_silent(self) -> Self:
        """The same without first steps that have no velocity."""
        return self

    def idle(self, levels: CallLevels) -> str:
        """Why it changes nothing at any call of a run, though its numbers are not neutral; empty where it acts."""
        return ""

    def numbers(self, levels: CallLevels) -> dict[str, np.ndarray]:
        """What the formula reads at each call, [N] each, for numbers that all samples share: by default the fields."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in self.constants}
        return {name: np.full(len(levels.sigma), value, dtype=np.float64) for name, value in values.items()}


def within(name: str, low: float, high: float, finite: bool = True) -> Callable[[Any], float]:
    """A check of a number between ``low`` and ``high``."""

    def check(value: Any) -> float:
        value = real_number(value, f"{name} must be a number")
        if not low <= value <= high or (finite and not math.isfinite(value)):
            raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value}")
        return held_in_fp32(value, name)

    return check


def set_numbers(correction: Correction, **bounds: Callable[[Any], float] | tuple[float, float]) -> None:
    """Put what its check or its bounds make of each number in its place, or of each sample's; counts of samples must agree."""
    for name, bound in bounds.items():
        check = within(name, *bound) if isinstance(bound, tuple) else bound
        object.__setattr__(correction, name, number_or_each(getattr(correction, name), check))
    samples_of(correction)
