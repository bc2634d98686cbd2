"""A search over placements by predicted error: for each branch and number of calls the best, then the best of all together."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product, zip_longest

from segue.engine.numeric_input import real_number

from .placement import Placement, Placements

ORDERS = (0, 1, 2, 3)
ROUNDS = 20  # of exchanges; they end before that where none helps
FEW = 400  # sets of calls that are all judged
REACH = 2  # how far a call is moved
STARTS = 60  # sets of calls of a branch from which calls are moved
POLISHED = 3  # placements after which calls are exchanged between branches
BENDS, ENDS = (0.8, 1.0, 1.3), (0.6, 0.8, 1.0)  # of the spaced calls that a search begins with


@dataclass(frozen=True)
class Wanted:
    """A cost, relative to unguided sampling, that may not be passed, or an error; one of the two."""

    cost: float | None = None
    error: float | None = None

    def __post_init__(self):
        if (self.cost is None) == (self.error is None):
            given = "both" if self.cost is not None else "neither"
            raise ValueError(f"a calibration is for a wanted cost or a wanted error, got {given}")
        for name, low, high in (("cost", 1.0, 1e6), ("error", 0.0, 1.0)):
            value = getattr(self, name)
            if value is not None:
                value = real_number(value, f"the wanted {name} must be a number")
                if not low < value < high:
                    above = " and below 1" if name == "error" else ""
                    raise ValueError(f"the wanted {name} must be above {low:g}{above}, got {value:g}")

    def __str__(self) -> str:
        return f"cost {self.cost:g}" if self.cost is not None else f"error {self.error:g}"


@dataclass(frozen=True)
class Search:
    """Placements of a rule by predicted error; ``predicted`` judges one."""

    placements: Placements
    predicted: Callable[[Placement], float]

    def best(self, wanted: Wanted) -> list[Placement]:
        """Some, the best first: of least error at the cost, or of least cost at the error.

        For a cost the first is followed by the best of each order alone: what a prediction says of one order beside another is
        what it errs in most.
        """
        found = list(dict.fromkeys(map(_lowest, self._joined(wanted))))
        if wanted.cost is not None:
            polished = [self._exchanged(placement, wanted.cost) for placement in found[:POLISHED]]
            first, *others = sorted(dict.fromkeys([*map(_lowest, polished), *found]), key=self.predicted)
            alone = [_lowest(self._joined(wanted, (order,))[0]) for order in ORDERS]
            return list(dict.fromkeys([first, *sorted(alone, key=self.predicted), *others]))
        return sorted(found, key=lambda placement: (round(self.placements.cost(placement), 6), self.predicted(placement)))

    def _joined(self, wanted: Wanted, orders: tuple[int, ...] = ORDERS) -> list[Placement]:
        """Placements of all branches, of those that are best for each alone; for a cost the best first."""
        made = []
        for choice in product(*(self._of_branch(branch, orders) for branch in range(len(self.placements.weighed)))):
            made.append(Placement(*zip(*choice, strict=True)))
        if wanted.cost is not None:
            return sorted((own for own in made if self.placements.cost(own) <= wanted.cost), key=self.predicted)
        return [own for own in made if self.predicted(own) <= wanted.error]  # at least that of all calls, which has none

    @cached_property
    def _known(self) -> dict[tuple[int, tuple[int, ...]], list[tuple[tuple[int, ...], int]]]:
        return {}

    def _of_branch(self, branch: int, orders: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
        """Calls and order of one branch that are best for each number of calls while all others are exact; of ``orders``."""
        if (branch, orders) not in self._known:
            self._known[branch, orders] = self._best_of_branch(branch, orders)
        return self._known[branch, orders]

    def _best_of_branch(self, branch: int, orders: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
        everything, needed = self.placements.all_calls(), self.placements.needed[branch]
        free = self.placements.free(branch)
        found: list[tuple[tuple[int, ...], int]] = []
        for count in range(len(free) + 1):
            tried = []
            for order in orders:
                for start in _spaced(free, count):
                    own = everything.with_calls(branch, tuple(sorted({*needed, *start})))
                    tried.append(replace(own, orders=(*own.orders[:branch], order, *own.orders[branch + 1 :])))
            starts = sorted(tried, key=self.predicted)[:STARTS]
            best = min((self._moved_calls(start, branch) for start in starts), key=self.predicted)
            found.append((best.calls[branch], best.orders[branch]))
        return found

    def _moved_calls(self, placement: Placement, branch: int) -> Placement:
        """After the best move of one call of a branch to one of its neighbours, again and again."""
        free = self.placements.free(branch)
        for _ in range(ROUNDS):
            near = [
                placement.without(branch, call).with_call(branch, other)
                for call in set(placement.calls[branch]) & set(free)
                for other in range(call - REACH, call + REACH + 1)
                if other in free and other not in placement.calls[branch]
            ]
            best = min(near, key=self.predicted, default=placement)
            if self.predicted(best) >= self.predicted(placement):
                break
            placement = best
        return placement

    def neighbours(self, placement: Placement, wanted: Wanted) -> list[Placement]:
        """Those that keep to the cost, or cost no more: the same calls by another order, then one call moved or one more.

        Each of these the least predicted error first.  Orders come before all: a prediction is made of calls that are left out
        alone, and what a high order does where several in a row are it does not see.  Calls are then moved in each branch in
        turn: those of one alone may all be predicted to be better than any of another, and be worse.
        """
        most = wanted.cost if wanted.cost is not None else self.placements.cost(placement) + 1e-9
        moved: dict[tuple[bool, ...], list[Placement]] = {}
        for other in sorted(self._near(placement, most), key=self.predicted):
            where = tuple(mine != own for mine, own in zip(other.calls, placement.calls, strict=True))
            moved.setdefault(where, []).append(other)
        orders = moved.pop((False,) * len(placement.calls), [])
        turns = (other for turn in zip_longest(*moved.values()) for other in turn if other is not None)
        return [*orders, *turns]

    def _exchanged(self, placement: Placement, most: float, rounds: int = ROUNDS) -> Placement:
        """After the best of these steps, again and again: a call exchanged for another, a call more, an order."""
        least = self.predicted(placement)
        for _ in range(rounds):
            best = min(self._near(placement, most), key=self.predicted, default=placement)
            if self.predicted(best) >= least:
                break
            placement, least = best, self.predicted(best)
        return placement

    def _near(self, placement: Placement, most: float) -> list[Placement]:
        """One exchange, one call or one order away, at a cost of ``most``."""
        near = [*self._other_orders(placement), *self._exchanges(placement), *self._additions(placement)]
        return [other for other in near if self.placements.cost(other) <= most]

    def _other_orders(self, placement: Placement) -> Iterator[Placement]:
        """Every placement with the order of one branch that is one lower or higher, as far as its calls allow."""
        for branch, order in enumerate(placement.orders):
            for other in (order - 1, order + 1):
                if 0 <= other <= min(ORDERS[-1], len(placement.calls[branch]) - 1):
                    yield replace(placement, orders=(*placement.orders[:branch], other, *placement.orders[branch + 1 :]))

    def _additions(self, placement: Placement) -> Iterator[Placement]:
        """Every placement with one call more of a branch: a cheap one may be left where no other exchange is."""
        for k in range(len(placement.calls)):
            for call in self.placements.free(k):
                if call not in placement.calls[k]:
                    yield placement.with_call(k, call)

    def _exchanges(self, placement: Placement) -> Iterator[Placement]:
        """Every placement with one call of a branch exchanged for another, of any branch."""
        branches = range(len(placement.calls))
        for k in branches:
            for call in set(placement.calls[k]) - set(self.placements.needed[k]):
                fewer = placement.without(k, call)
                for other in branches:
                    for instead in self.placements.free(other):
                        if instead not in placement.calls[other]:
                            yield fewer.with_call(other, instead)


def _spaced(free: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """All ways to choose ``count`` calls of those that are ``free`` if they are few, else some that spread them.

    Denser at the beginning, even, or denser at the end.
    """
    if math.comb(len(free), count) <= FEW:
        return list(combinations(free, count))
    spread = []
    for bend, end in product(BENDS, ENDS):
        places = [round(end * (len(free) - 1) * ((i + 1) / count) ** bend) for i in range(count)]
        chosen = sorted(set(places))
        chosen += [place for place in range(len(free)) if place not in chosen][: count - len(chosen)]
        spread.append(tuple(free[place] for place in sorted(chosen)))
    return list(dict.fromkeys(spread))


def _lowest(placement: Placement) -> Placement:
    """The same with the lowest orders that differ: a polynomial through few directions is of a low one."""
    orders = (min(order, max(0, len(calls) - 1)) for order, calls in zip(placement.orders, placement.calls, strict=True))
    return Placement(placement.calls, tuple(orders))
