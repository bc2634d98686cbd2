"""Which calls compute a direction, and from which kept ones, with which coefficients, every other call extrapolates its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..rules.guidance import Branch, Guidance
from ..rules.integers import ranges_text
from ..rules.reuse import EXACT, Reuse


def branch_reuse(guidance: Guidance, branches: tuple[Branch, ...]) -> tuple[Reuse, ...]:
    """When each branch after the conditional one is evaluated; two terms on one branch must agree, else ``ValueError``."""
    seen: dict[Branch, Reuse] = {}
    for term in guidance.terms:
        if term.branch.is_conditional:
            continue
        if seen.setdefault(term.branch, term.reuse) != term.reuse:
            raise ValueError(f"two terms on the branch {term.branch} refresh it {seen[term.branch]} and {term.reuse}")
    return tuple(seen.get(branch, EXACT) for branch in branches[1:])


def evaluated_calls(weights: np.ndarray, reuse: Sequence[Reuse]) -> np.ndarray:
    """At which calls [N, K] a branch is evaluated: of those where it has a weight, the ones that its reuse says.

    The first call after a pause is always among them, so that no direction is carried over one.
    """
    evaluated = weights != 0
    for k, own in enumerate(reuse):
        age = 0
        for call, live in enumerate(weights[:, k] != 0):
            due = age % own.refresh == 0 if own.calls is None else age == 0 or call + 1 in own.calls
            evaluated[call, k] = live and due
            age = age + 1 if live else 0
    return evaluated


def reuse_warnings(reuse: Sequence[Reuse], branches: tuple[Branch, ...], calls: int) -> list[str]:
    """Calls that a run does not have."""
    warnings = []
    for branch, own in zip(branches[1:], reuse, strict=True):
        beyond = [call for call in own.calls or () if call > calls]
        if beyond:
            warnings.append(f"the calls {ranges_text(beyond)} that compute {branch} come after the last one, {calls}")
    return warnings


@dataclass(frozen=True, eq=False)
class ReuseTables:
    """What a run needs to keep directions and to extrapolate them; ``places`` directions of a branch are kept.

    The direction that call j computes goes to a place of its own, the one that was written longest ago.  Source of the
    coefficients: Lagrange's form of the polynomial through the nodes, in the noise level.
    """

    coefficients: np.ndarray  # [N, K, places] of kept directions; zero where the branch is evaluated or weighs nothing
    place: np.ndarray  # [N, K] of the direction that was computed last, at this call or before it; 0 where there is none
    oldest: np.ndarray  # [N, K] the first call among those whose directions are extrapolated; the call itself where none are


def reuse_tables(
    weights: np.ndarray, evaluated: np.ndarray, sigmas: np.ndarray, orders: Sequence[int], places: int
) -> ReuseTables:
    """The tables of one rule; weights and evaluated [N, K], sigmas [N], orders [K] less than ``places``.

    Of directions that were kept at one noise level the last counts.
    """
    calls, branches = weights.shape
    coefficients = np.zeros((calls, branches, places))
    place = np.zeros((calls, branches), dtype=np.int64)
    oldest = np.tile(np.arange(calls)[:, None], (1, branches))
    for k, order in enumerate(orders):
        computed: list[int] = []  # in this segment
        for call in range(calls):
            if weights[call, k] == 0:
                computed = []
            elif evaluated[call, k]:
                computed.append(call)
            else:
                nodes = _distinct(computed[-order - 1 :], sigmas)
                where = [_place(computed, node, places) for node in nodes]
                coefficients[call, k, where] = lagrange(sigmas[nodes], sigmas[call])
                oldest[call, k] = nodes[0]
            place[call, k] = _place(computed, computed[-1], places) if computed else 0
    return ReuseTables(coefficients, place, oldest)


def _distinct(nodes: list[int], sigmas: np.ndarray) -> list[int]:
    """The last of those at each noise level, in order."""
    return sorted({float(sigmas[node]): node for node in nodes}.values())


def _place(computed: list[int], node: int, places: int) -> int:
    return computed.index(node) % places


def lagrange(nodes: np.ndarray, at: float) -> np.ndarray:
    """The weights [p] of values at distinct ``nodes`` [p] in the polynomial through them, at ``at``; they sum to one."""
    weights = np.ones(len(nodes))
    for i, own in enumerate(nodes):
        for other in np.delete(nodes, i):
            weights[i] *= (at - other) / (own - other)
    return weights
