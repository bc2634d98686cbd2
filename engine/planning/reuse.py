"""Which calls compute a direction, and from which kept ones, with which coefficients, every other call extrapolates its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..rules.branch import Branch
from ..rules.drawn import Draw
from ..rules.guidance import Guidance
from ..rules.integers import ranges_text
from ..rules.reuse import EXACT, Reuse


def branch_reuse(guidance: Guidance, branches: tuple[Branch, ...]) -> tuple[Reuse, ...]:
    """When each branch after the conditional one is evaluated; two terms on one branch must agree, else ``ValueError``."""
    seen: dict[Branch, Reuse] = {}
    for term in guidance.terms:
        if term.branch.is_conditional:
            continue
        if not term.reuse.is_exact and isinstance(term.branch.condition, Draw):
            raise ValueError(
                f"the {term.branch} changes from call to call: its direction is not reused, got one computed {term.reuse}"
            )
        if seen.setdefault(term.branch, term.reuse) != term.reuse:
            raise ValueError(f"two terms on the branch {term.branch} refresh it {seen[term.branch]} and {term.reuse}")
    return tuple(seen.get(branch, EXACT) for branch in branches[1:])


def branch_stops(guidance: Guidance, branches: tuple[Branch, ...]) -> tuple[float | None, ...]:
    """The cosine at which each branch stops, None for those that do not; two terms must agree, else ``ValueError``."""
    seen: dict[Branch, float | None] = {}
    for term in guidance.terms:
        if seen.setdefault(term.branch, term.stop) != term.stop:
            raise ValueError(f"two terms on the branch {term.branch} stop at cosines {seen[term.branch]} and {term.stop}")
    return tuple(seen.get(branch) for branch in branches[1:])


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
    """The tables of one rule; weights and evaluated [N, K], sigmas [N], orders [K] less than ``places``."""
    calls, branches = weights.shape
    coefficients = np.zeros((calls, branches, places))
    place = np.zeros((calls, branches), dtype=np.int64)
    oldest = np.tile(np.arange(calls)[:, None], (1, branches))
    for k, order in enumerate(orders):
        own = _places(weights[:, k], evaluated[:, k], places)
        place[:, k] = own
        for call, (nodes, factors) in extrapolations(weights[:, k], evaluated[:, k], sigmas, order).items():
            coefficients[call, k, own[nodes]] = factors
            oldest[call, k] = nodes[0]
    return ReuseTables(coefficients, place, oldest)


def extrapolations(
    weights: np.ndarray, evaluated: np.ndarray, sigmas: np.ndarray, order: int
) -> dict[int, tuple[list[int], np.ndarray]]:
    """Of one branch, for each call that does not evaluate it: the calls whose directions serve, in order, and their factors.

    weights, evaluated and sigmas [N].  Of directions that were computed at one noise level the last counts.
    """
    computed: list[int] = []  # in this segment
    found = {}
    for call, level in enumerate(sigmas):
        if weights[call] == 0:
            computed = []
        elif evaluated[call]:
            computed.append(call)
        else:
            nodes = sorted({float(sigmas[node]): node for node in computed[-order - 1 :]}.values())
            found[call] = nodes, lagrange(sigmas[nodes], level)
    return found


def _places(weights: np.ndarray, evaluated: np.ndarray, places: int) -> np.ndarray:
    """Where the direction lies that was computed last, [N]: the first of a segment in place 0, the others in turn."""
    found, count = np.zeros(len(weights), dtype=np.int64), 0
    for call, live in enumerate(weights != 0):
        count = count + bool(evaluated[call]) if live else 0
        found[call] = max(count - 1, 0) % places
    return found


def lagrange(nodes: np.ndarray, at: float) -> np.ndarray:
    """The weights [p] of values at distinct ``nodes`` [p] in the polynomial through them, at ``at``; they sum to one."""
    weights = np.ones(len(nodes))
    for i, own in enumerate(nodes):
        for other in np.delete(nodes, i):
            weights[i] *= (at - other) / (own - other)
    return weights
