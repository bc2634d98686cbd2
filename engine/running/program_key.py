"""What programs are told apart by: all that their buffers and their captured steps depend on."""

from dataclasses import dataclass, replace

import numpy as np

from ..planning.plan import Plan
from ..rules.branch import Branch
from ..rules.drawn import Chooser, Draw
from ..rules.dropped_blocks import DropBlocks


@dataclass(frozen=True)
class ProgramKey:
    """What a program is specialised on.  Weights, windows, sigmas, labels, seeds and draws are not in it.

    ``shared`` is whether one table serves all samples, ``kept`` are the branches whose directions are reused, ``places`` how
    many are kept of each, ``adaptive`` are those that stop, ``corrections`` are their kinds, not their numbers;
    ``earlier`` counts the calls before the previous one that the solver looks back to.
    ``calls`` is a capacity: a program also serves shorter runs, so only a run of more calls than any before builds anew.
    """

    batch: int
    shared: bool
    height: int
    width: int
    branches: tuple[Branch, ...]
    masks: tuple[int, ...]
    kept: tuple[int, ...]
    places: int
    adaptive: tuple[int, ...]
    corrections: tuple[tuple, ...]
    stochastic: bool
    learned_variance: bool
    earlier: int
    calls: int
    conditions: int
    text_tokens: int

    @classmethod
    def of(cls, plan: Plan, batch: int) -> "ProgramKey":
        capacity = 32  # a table row of SD3.5-medium is a megabyte: room for common step counts, not more
        while capacity < max(plan.calls, len(np.unique(np.concatenate(plan.times)))):
            capacity *= 2
        fixed = tuple(condition for condition in plan.conditions if not isinstance(condition, Draw))
        conditions, text = plan.spec.distinct_conditions(fixed, batch), plan.spec.text_tokens
        masks = tuple(int(mask) for mask in plan.masks)
        kinds = tuple(correction.kind for correction in plan.corrections)
        rule = tuple(map(without_numbers, plan.branches)), masks, plan.kept, plan.places, plan.adaptive, kinds
        solver = plan.stochastic, plan.learned_variance, plan.earlier
        return cls(batch, not plan.samples, plan.height, plan.width, *rule, *solver, capacity, conditions, text)

    def serves(self, other: "ProgramKey") -> bool:
        """Whether a program of this key can hold a run of the other."""
        return self.calls >= other.calls and replace(other, calls=self.calls) == self


def without_numbers(branch: Branch) -> Branch:
    """A branch as a program is built for it: without the numbers of what is drawn, which are loaded."""
    if isinstance(branch.network, DropBlocks):
        branch = replace(branch, network=branch.network.skeleton)
    if isinstance(branch.network, Chooser):
        return replace(branch, network=Chooser(branch.network.draw.skeleton))
    return replace(branch, condition=branch.condition.skeleton) if isinstance(branch.condition, Draw) else branch
