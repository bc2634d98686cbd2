"""When a classifier is asked for a reference, and which calls follow its choice: resolved once, on the host."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..rules.branch import COND, UNCOND, Branch
from ..rules.drawn import Chooser, ClassifierReference, Draw
from ..rules.guidance import Guidance

if TYPE_CHECKING:
    from .plan import Plan  # which is made with this module


@dataclass(frozen=True, eq=False)
class Choices:
    """``asked`` [N]: whether the classifier is asked at a call; ``follows`` [N]: whether a call uses what was chosen."""

    asked: np.ndarray
    follows: np.ndarray


def chooser(draw: ClassifierReference) -> Branch:
    """The classifier of a draw, as a branch that adds nothing and is live where it is asked."""
    return Branch(network=Chooser(draw))


def source(draw: ClassifierReference) -> Branch:
    """The branch whose clean estimate the classifier of a draw sees."""
    return {"cond": COND, "uncond": UNCOND, "weak": Branch(model=draw.model)}[draw.source]


def drawn_by_classifiers(branches: Iterable[Branch]) -> tuple[ClassifierReference, ...]:
    """The distinct draws of branches that a classifier chooses the labels of."""
    return tuple(dict.fromkeys(b.condition for b in branches if isinstance(b.condition, ClassifierReference)))


def with_choosers(branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """``branches``, then those that classifiers look at, and the classifiers."""
    draws = drawn_by_classifiers(branches)
    return tuple(dict.fromkeys([*branches, *map(source, draws), *map(chooser, draws)]))


def check_sources(guidance: Guidance, branches: tuple[Branch, ...]) -> None:
    """Raise ``ValueError`` where a term does without the branch at calls at which a classifier looks at it."""
    seen = {source(draw): draw for draw in drawn_by_classifiers(branches)}
    for term in guidance.terms:
        if term.branch in seen and not (term.reuse.is_exact and term.stop is None):
            raise ValueError(
                f"the {chooser(seen[term.branch])} looks at the {term.branch} branch, which a term of the rule does without at "
                "times: give it source='cond'"
            )


def choices(draw: ClassifierReference, weighs: np.ndarray, inside: np.ndarray, silent: np.ndarray) -> Choices:
    """What a draw asks and follows at N calls where its branches weigh something, in its interval and not silent, [N] bool.

    Of consecutive calls that follow, every ``draw.every``-th has a choice of its own; with ``lag=1`` it is made at the call
    before, if that evaluates anything.
    """
    follows = weighs & inside & ~silent
    if draw.lag:
        before = np.concatenate([[True], silent[:-1]])  # nothing was evaluated there
        follows = follows & ~before
    asked, age = np.zeros_like(follows), 0
    for call, follow in enumerate(follows):
        if follow and age % draw.every == 0:
            asked[call - draw.lag] = True
        age = age + 1 if follow else 0
    return Choices(asked, follows)


def choices_of(plan: "Plan", draw: Draw) -> Choices:
    """Those of a draw in a plan of one rule; of a random one, none."""
    none = np.zeros(plan.calls, dtype=bool)
    if not isinstance(draw, ClassifierReference):
        return Choices(none, none)
    levels = plan.parameterization.snap(plan.schedule.array())[:-1]
    members = [i - 1 for i, branch in enumerate(plan.branches) if branch.condition == draw]
    return choices(draw, (plan.weights[:, members] != 0).any(axis=1), draw.interval.select(levels)[plan.steps], plan.silent)


def _members(branches: tuple[Branch, ...]) -> list[tuple[ClassifierReference, list[int]]]:
    """Each draw of a classifier, and the columns of weights of the branches whose labels it chooses."""
    draws = drawn_by_classifiers(branches)
    return [(draw, [i - 1 for i, branch in enumerate(branches) if branch.condition == draw]) for draw in draws]


def choice_warnings(
    branches: tuple[Branch, ...], weights: np.ndarray, levels: np.ndarray, steps: np.ndarray, silent: np.ndarray
) -> list[str]:
    """Rivals that no call of a run follows, though their terms weigh something there; weights [N, K] of its calls."""
    warnings = []
    for draw, members in _members(branches):
        weighs, inside = (weights[:, members] != 0).any(axis=1), draw.interval.select(levels)[steps]
        if not (weighs & ~silent).any() or choices(draw, weighs, inside, silent).follows.any():
            continue
        if not (weighs & inside & ~silent).any():
            why = f"the interval {draw.interval} of the {draw} selects none of {len(steps)} calls"
        else:
            why = f"the {draw} is chosen at the call before (lag=1), and none comes before one that would use it"
        warnings.append(f"{why}: no label is chosen")
    return warnings


def without_unchosen(
    weights: np.ndarray, branches: tuple[Branch, ...], levels: np.ndarray, steps: np.ndarray, silent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weights [N, K] without rivals that nothing has chosen, and which branches [N, K] run for choices alone."""
    weights, extra = weights.copy(), np.zeros(weights.shape, dtype=bool)
    for draw, members in _members(branches):
        made = choices(draw, (weights[:, members] != 0).any(axis=1), draw.interval.select(levels)[steps], silent)
        if not draw.swaps:
            weights[np.ix_(~made.follows, np.array(members))] = 0.0
        extra[:, branches.index(chooser(draw)) - 1] |= made.asked
        if (seen := branches.index(source(draw))) > 0:
            extra[:, seen - 1] |= made.asked
    return weights, extra
