"""Guidance rules as sums of terms: ``v = v_c + sum_k w_k(sigma) (v_c - v_k)``.

A term names a branch ``k`` (which condition, which network), a weight over the noise level and a window.  Rules add:
``CFG(4.5, window=...) + SkipLayer(3.0, layers=(7, 8, 9), window=...)`` is segmented guidance.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from ..numeric_input import LARGEST, counting_number, number_or_each, real_number, table_number
from .branch import Branch
from .calibration import Calibration, read_calibration
from .call_scale import CallScale
from .correction import FREQUENCIES, Correction
from .drawn import Draw
from .dropped_blocks import DropBlocks
from .normalized_attention import NormalizedAttention
from .per_sample import Number, Numbers, as_kept, common_count, each, picked, samples_of, shared, shown
from .reuse import EXACT, Reuse
from .rule_text import rule_text, shown_rule
from .step_weight import StepWeight, takes_two_levels
from .window import EVERYWHERE, Window, as_window

ROUNDING = 2.0**-50  # of a scale, less 1, plus a delta: a few steps of fp64
RETURNED = "a function of sigma must return a number"


@dataclass(frozen=True)
class Weight:
    """A weight over a window: ``base + delta (1 - 2 p)`` with ``p`` from 0 to 1 over its steps, or ``function(sigma)``.

    ``base`` and ``delta`` are one number, or one for each sample of a batch.  Source of the linear form: the published SGG
    command line (arXiv 2603.20584).
    """

    base: Number = 0.0
    delta: Number = 0.0
    function: Callable[[float], float] | StepWeight | None = None

    def __post_init__(self):
        for name in ("base", "delta"):
            object.__setattr__(self, name, number_or_each(getattr(self, name), self._finite))
        samples_of(self)  # raises where they are for different batches
        if self.function is not None and not callable(self.function):
            raise TypeError(f"the function of a weight must be callable, got {self.function!r}")

    @staticmethod
    def _finite(value: float) -> float:
        return table_number(value, "a weight")

    def __call__(self, sigma: float, position: float, next_sigma: float = math.nan) -> float:
        """The weight at noise level ``sigma`` and position ``p`` in the window; zero where only its rounding is left.

        ``next_sigma`` is where the step ends, for a function of both.  Of numbers that all samples share; see
        :meth:`Guidance.of_sample`.
        """
        if self.function is None:
            base, delta = shared(self.base), shared(self.delta)
            value = table_number(base + delta * (1 - 2 * position), "a weight with its delta")
            return value if abs(value) > ROUNDING * (1 + abs(base) + abs(delta)) else 0.0
        levels = (sigma, next_sigma) if isinstance(self.function, StepWeight) else (sigma,)
        value = real_number(self.function(*levels), RETURNED)
        if not abs(value) <= LARGEST:
            raise ValueError(f"the weight function returned {value} at sigma {sigma:.4g}")
        return value


@dataclass(frozen=True)
class Term:
    """``w (v_c - v_k)`` inside a window.  ``channels`` restricts it to the first latent channels (None: all).

    ``reuse``: see :meth:`Guidance.reused`; ``stop``: see :meth:`Guidance.adaptive`.
    """

    branch: Branch
    weight: Weight
    window: Window = EVERYWHERE
    channels: int | None = None
    reuse: Reuse = EXACT
    stop: float | None = None

    def __post_init__(self):
        if not isinstance(self.branch, Branch):
            raise TypeError(f"the branch of a term must be a Branch, got {self.branch!r}")
        if self.branch.is_text:
            raise ValueError(
                f"the branch {self.branch} of a term has no output to guide by; NAG(scale) guides by a negative text"
            )
        if not isinstance(self.weight, Weight):
            raise TypeError(f"the weight of a term must be a Weight, such as Weight(2.0), got {self.weight!r}")
        object.__setattr__(self, "window", as_window(self.window))
        if not isinstance(self.reuse, Reuse):
            raise TypeError(f"the reuse of a term must be a Reuse, such as Reuse(2), got {self.reuse!r}")
        if self.stop is not None:
            object.__setattr__(self, "stop", self._checked_stop())
        if self.channels is not None:
            object.__setattr__(self, "channels", counting_number(self.channels, "channels"))

    def _checked_stop(self) -> float:
        stop = real_number(self.stop, "the cosine at which a term stops must be a number")
        if not -1 < stop < 1:
            raise ValueError(f"the cosine at which a term stops must lie between -1 and 1, got {stop:g}")
        if self.branch.condition == "cond":
            raise ValueError(f"adaptive guidance stops terms with another condition, such as CFG's, not that of {self.branch}")
        if isinstance(self.branch.condition, Draw):
            raise ValueError(f"adaptive guidance compares a condition from call to call, and that of {self.branch} changes")
        if not self.reuse.is_exact:
            raise ValueError(f"a term stops by what each call says, and this one computes its direction {self.reuse}")
        return stop


@dataclass(frozen=True, repr=False)
class Guidance:
    """A sum of terms on top of the conditional prediction, then perhaps corrections; no terms is unguided sampling.

    ``corrections`` follow one another, each kind once, in the order of their places (see :mod:`.correction`).
    ``attention``: guidance inside the conditional rows themselves, see :func:`NAG`.
    """

    terms: tuple[Term, ...] = ()
    corrections: tuple[Correction, ...] = ()
    attention: tuple[NormalizedAttention, ...] = ()
    calibration: Calibration | None = None  # see calibrated

    def __post_init__(self):
        for name in ("terms", "corrections", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for part in self.attention:
            if not isinstance(part, NormalizedAttention):
                raise TypeError(f"guidance of the attention is made by NAG, got {part!r}")
        for correction in self.corrections:
            if not isinstance(correction, Correction) or type(correction) is Correction:
                raise TypeError(f"a correction is made by functions such as Rescale, CFGZeroStar or APG, got {correction!r}")
        for first, second in itertools.pairwise(self.corrections):
            if second.place < first.place:
                raise ValueError(f"{first} acts on what {second} leaves: add {second.name} before {first.name}")
        for first, second in itertools.combinations(self.corrections, 2):
            if type(first) is type(second):
                raise ValueError(f"a rule holds a correction once, got {first} and {second}")
            if first.place == second.place == FREQUENCIES:
                raise ValueError(f"a rule cuts the frequencies of a direction once, got {first} and {second}")
        for term in self.terms:
            if not isinstance(term, Term):
                raise TypeError(f"a guidance rule is a tuple of terms, got {term!r}")
        _ = self.samples  # raises where terms are for different batches

    @property
    def samples(self) -> int | None:
        """For how many samples the rule has numbers of their own; None where all share them."""
        weights = (term.weight for term in self.terms)
        return common_count(map(samples_of, [*weights, *self.attention, *self.corrections]))

    def of_sample(self, sample: int) -> "Guidance":
        """The rule of one sample of the batch, with one number wherever this has one for each."""
        return self._picked(sample)

    def part(self, samples: slice) -> "Guidance":
        """The rule of some of the samples of the batch."""
        return self._picked(samples)

    def _picked(self, samples: int | slice) -> "Guidance":
        terms = tuple(replace(term, weight=picked(term.weight, samples)) for term in self.terms)
        corrections = tuple(picked(correction, samples) for correction in self.corrections)
        return Guidance(terms, corrections, tuple(picked(part, samples) for part in self.attention))

    def __repr__(self) -> str:
        return f"<Guidance {shown_rule(self)}>"

    def __add__(self, other: "Guidance") -> "Guidance":
        if not isinstance(other, Guidance):
            return NotImplemented
        for one, added in ((self, other), (other, self)):
            if one.calibration and (added.terms or added.corrections or added.attention):
                raise ValueError(f"a calibration is of the whole rule {one.calibration.rule}: add {added!r} before it")
        parts = self.corrections + other.corrections, self.attention + other.attention
        return Guidance(self.terms + other.terms, *parts, self.calibration or other.calibration)

    def _with_terms(self, terms: Iterable[Term]) -> "Guidance":
        """Another rule, of which no calibration speaks."""
        return replace(self, terms=tuple(terms), calibration=None)

    @property
    def zero_steps(self) -> int:
        """How many of the first steps have no velocity, of a rule whose numbers all samples share."""
        return max((shared(correction.zero_steps) for correction in self.corrections), default=0)

    def needs_schedule(self) -> str:
        """What in the rule has no meaning at one noise level alone, only along a schedule; empty if nothing."""
        for term in self.terms:
            if term.window.kind in ("steps", "fraction"):
                return f"the window {term.window}"
            if isinstance(term.weight.function, StepWeight):
                return f"the weight of {term.branch}, a function of two levels,"
            if any(np.atleast_1d(term.weight.delta)):
                return f"the delta {shown(term.weight.delta)}"
            if not term.reuse.is_exact:
                return f"the reuse of directions, computed {term.reuse},"
            if term.stop is not None:
                return f"the stop at cosine {term.stop:g}"
            if isinstance(term.branch.network, DropBlocks):
                return f"the branch {term.branch}, which draws them at every step,"
            if isinstance(term.branch.condition, Draw) and (what := term.branch.condition.needs_schedule()):
                return what
        for part in self.attention:
            if part.window.kind in ("steps", "fraction"):
                return f"the window {part.window}"
        for correction in self.corrections:
            if correction.needs_schedule:
                return f"the correction {correction}"
        return ""

    def within(self, window: Window | str) -> "Guidance":
        """The same rule with every term, and NAG, confined to ``window``; one that already has a window is refused."""
        parts: tuple[Term | NormalizedAttention, ...] = (*self.terms, *self.attention)
        for part in parts:
            if part.window != EVERYWHERE:
                what = "a term" if isinstance(part, Term) else "NAG"
                raise ValueError(f"{what} already has the window {part.window}; give windows in one place")
        window = as_window(window)
        attention = tuple(replace(part, window=window) for part in self.attention)
        return replace(self._with_terms(replace(term, window=window) for term in self.terms), attention=attention)

    @property
    def takes_call_scale(self) -> bool:
        """Whether a scale is that of the call of an attached pipeline."""
        return any(isinstance(term.weight.function, CallScale) for term in self.terms)

    def with_call_scale(self, scale: float) -> "Guidance":
        """The same rule with ``scale`` where it takes that of a call."""

        def weight(term: Term) -> Weight:
            return weight_of(scale, 0.0, offset=1.0) if isinstance(term.weight.function, CallScale) else term.weight

        return self._with_terms(replace(term, weight=weight(term)) for term in self.terms) if self.takes_call_scale else self

    def reused(self, refresh: int = 1, *, order: int = 0, calls: Sequence[int] | None = None) -> "Guidance":
        """The same rule, approximately: directions ``c - k`` are computed at some calls and extrapolated at those between.

        Computed at every ``refresh``-th call, or at ``calls``, which are those of the run counted from 1; ``order`` 0 holds the
        last direction, 1 is the line in the noise level through the last two, up to 3 (:class:`.reuse.Reuse`).  The weights
        stay those of each call.  Directions are kept in the network's own output (velocity, or noise for DiT).
        ``refresh=1`` without calls is the exact rule.
        """
        reuse = Reuse(refresh, order, None if calls is None else cast("tuple[int, ...]", calls))
        return self._with_terms(replace(term, reuse=reuse) for term in self.terms)

    def adaptive(self, stop: float) -> "Guidance":
        """The same rule until, sample by sample, the cosine of ``c`` and the reference passes ``stop``; unguided from there on.

        Of the terms with another condition, of which there must be one.  A branch that has stopped for all samples of a batch
        runs no more: the cost of the plan is what it is at most.  Source: adaptive guidance (arXiv 2312.12487), in the
        network's own output: noise for DiT, as published; for velocities a reconstruction.
        """
        if all(term.branch.condition == "cond" for term in self.terms):
            raise ValueError(f"adaptive guidance stops terms with another condition, such as CFG's, and {self!r} has none")
        others = {term: replace(term, stop=stop) for term in self.terms if term.branch.condition != "cond"}
        return self._with_terms(others.get(term, term) for term in self.terms)

    def calibrated(self, calibration: "str | Path | Calibration") -> "Guidance":
        """The same rule, approximately, as ``segue calibrate`` found best: from its file, or by the name of a bundled one.

        Its error is known for one model, schedule, solver and size, beside others of which its plan is refused.  Raises
        ``ValueError`` for the calibration of another rule.
        """
        found = read_calibration(calibration)
        found.check_rule(rule_text(self))
        if len(found.reuse) != len(self.terms):
            raise ValueError(f"the calibration is for {len(found.reuse)} terms, and its rule has {len(self.terms)}")
        terms = tuple(replace(term, reuse=reuse) for term, reuse in zip(self.terms, found.reuse, strict=True))
        return replace(self, terms=terms, calibration=found)


Unguided = Guidance


Scale = Numbers | Callable[[float], float] | Callable[[float, float], float]


def correcting(correction: Correction) -> Guidance:
    """The rule of one correction and no term, to be added to others."""
    return Guidance(corrections=(correction,))


def weight_of(value: Scale, delta: Numbers, offset: float = 0.0) -> Weight:
    """``value - offset`` as a Weight."""
    if callable(value):
        if any(np.atleast_1d(delta)):
            raise ValueError(f"delta {delta} applies to a constant weight, not to a function of sigma")
        if takes_two_levels(value):
            return Weight(function=StepWeight(cast("Callable[[float, float], float]", value), offset))
        one = cast("Callable[[float], float]", value)
        return Weight(function=lambda sigma: real_number(one(sigma), RETURNED) - offset)
    requirement = "a scale must be a finite number or a function of sigma"
    numbers = number_or_each(value, lambda number: real_number(number, requirement))
    return Weight(each(numbers, lambda number: number - offset), as_kept(delta))
