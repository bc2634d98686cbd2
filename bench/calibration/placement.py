"""At which calls each branch of a rule is evaluated and by which order it is extrapolated between: a candidate of a search."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from segue.engine.planning.plan import Plan
from segue.engine.rules.guidance import Guidance
from segue.engine.rules.reuse import Reuse


@dataclass(frozen=True)
class Placement:
    """For each guidance branch of a plan its evaluated calls, from 0, in order, and the order of its extrapolation."""

    calls: tuple[tuple[int, ...], ...]
    orders: tuple[int, ...]

    def with_call(self, branch: int, call: int) -> "Placement":
        """One more call."""
        return self.with_calls(branch, tuple(sorted({*self.calls[branch], call})))

    def without(self, branch: int, call: int) -> "Placement":
        """One call less."""
        return self.with_calls(branch, tuple(own for own in self.calls[branch] if own != call))

    def with_calls(self, branch: int, calls: tuple[int, ...]) -> "Placement":
        """Other calls of a branch."""
        return replace(self, calls=(*self.calls[:branch], calls, *self.calls[branch + 1 :]))


@dataclass(frozen=True)
class Placements:
    """The placements of an exact rule's plan: which there are, what each costs, and the rule that it is.

    Raises ``ValueError`` for a rule without anything to leave out: no branch, or one with numbers for each sample.
    """

    exact: Plan

    def __post_init__(self):
        if self.exact.samples:
            raise ValueError(f"a calibration is of one rule for all samples, got {self.exact.guidance!r}")
        if self.exact.kept:
            raise ValueError(f"a calibration begins with the exact rule, and {self.exact.guidance!r} reuses directions")
        if self.exact.reference is not None:
            raise ValueError(f"{self.exact.corrections[0]} needs its reference at every call: there is nothing to leave out")
        if not any(len(calls) > 1 for calls in self.weighed):
            raise ValueError(f"{self.exact.guidance!r} evaluates no branch twice in a row: there is nothing to leave out")

    @cached_property
    def weighed(self) -> tuple[tuple[int, ...], ...]:
        """The calls at which each branch has a weight."""
        return tuple(tuple(map(int, np.flatnonzero(column))) for column in self.exact.weights.T)

    @cached_property
    def needed(self) -> tuple[tuple[int, ...], ...]:
        """The first of each segment, at which nothing is kept."""
        return tuple(tuple(call for call in calls if call - 1 not in calls) for calls in self.weighed)

    def free(self, branch: int) -> tuple[int, ...]:
        """The calls of a branch that may be left out."""
        return tuple(call for call in self.weighed[branch] if call not in self.needed[branch])

    @cached_property
    def changes(self) -> tuple[tuple[int, int], ...]:
        """All that may be left out, branch by branch: (branch, call)."""
        return tuple((k, call) for k in range(len(self.weighed)) for call in self.free(k))

    def all_calls(self, order: int = 0) -> Placement:
        """Nothing left out."""
        return Placement(self.weighed, (order,) * len(self.weighed))

    def fewest(self, orders: tuple[int, ...]) -> Placement:
        """Everything left out that may be."""
        return Placement(self.needed, orders)

    def reuse(self, placement: Placement) -> tuple[Reuse, ...]:
        """How each branch is reused; one list of calls for all of them where no two branches have a weight at one call."""
        lists = [{call + 1 for call in calls} for calls in placement.calls]
        if not (np.count_nonzero(self.exact.weights, axis=1) > 1).any():
            lists = [set().union(*lists)] * len(lists)
        return tuple(Reuse(order=order, calls=tuple(sorted(own))) for own, order in zip(lists, placement.orders, strict=True))

    def rule(self, placement: Placement) -> Guidance:
        """The approximate rule."""
        rule, reuse = self.exact.rules[0], self.reuse(placement)
        branches = self.exact.branches[1:]
        terms = (
            term if term.branch.is_conditional else replace(term, reuse=reuse[branches.index(term.branch)])
            for term in rule.terms
        )
        return replace(rule, terms=tuple(terms))

    def cost(self, placement: Placement) -> float:
        """The work relative to unguided sampling, as the plan of the approximate rule counts it."""
        live: list[tuple[int, ...]] = [(0,)] * self.exact.calls
        for k, calls in enumerate(placement.calls):
            for call in calls:
                live[call] += (k + 1,)
        total = sum(self._work_of(() if silent else own) for own, silent in zip(live, self.exact.silent, strict=True))
        return total / (self.exact.calls * self.exact.spec.forward_flops(self.exact.height, self.exact.width))

    def _work_of(self, live: tuple[int, ...]) -> int:
        if live not in self._work:
            self._work[live] = self._kept.call_cost(live)[2]
        return self._work[live]

    @cached_property
    def _kept(self) -> Plan:
        return replace(self.exact, kept=tuple(range(1, len(self.exact.branches))))

    @cached_property
    def _work(self) -> dict[tuple[int, ...], int]:
        return {}
