"""A search over placements: calls added one by one, then exchanged, by what the error of each is predicted to be."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from segue.engine.numeric_input import real_number

from .placement import Placement, Placements

ORDERS = (0, 1, 2)
ROUNDS = 20  # of exchanges; they end before that where none helps


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
        """One for each choice of orders, the best first: of least error at the cost, or of least cost at the error."""
        choices = product(ORDERS, repeat=len(self.placements.weighed))
        made = (self._of_orders(orders, wanted) for orders in choices)
        found = list(dict.fromkeys(_lowest(placement) for placement in made if placement is not None))
        if wanted.cost is not None:
            return sorted(found, key=self.predicted)
        return sorted(found, key=self.placements.cost)

    def neighbours(self, placement: Placement, wanted: Wanted) -> list[Placement]:
        """Those with one call moved that keep to the cost, or cost no more; the least error first."""
        most = wanted.cost if wanted.cost is not None else self.placements.cost(placement) + 1e-9
        near = [other for other in self._exchanges(placement) if self.placements.cost(other) <= most]
        return sorted(near, key=self.predicted)

    def _of_orders(self, orders: tuple[int, ...], wanted: Wanted) -> Placement | None:
        """None where even the fewest calls cost more than is wanted."""
        placement = self.placements.fewest(orders)
        if wanted.cost is not None:
            if self.placements.cost(placement) > wanted.cost:
                return None
            while (more := self._with_one_more(placement, wanted.cost)) is not None:
                placement = more
            return self._exchanged(placement, wanted.cost)
        while self.predicted(placement) > wanted.error and (more := self._with_one_more(placement, None)) is not None:
            placement = self._exchanged(more, self.placements.cost(more) + 1e-9, rounds=1)
        return self._exchanged(placement, self.placements.cost(placement) + 1e-9)

    def _with_one_more(self, placement: Placement, most: float | None) -> Placement | None:
        """With the call that lowers the error most for its cost; None where none is left that the cost allows."""
        before, cost = self.predicted(placement), self.placements.cost(placement)
        best, gain = None, float("-inf")
        for k in range(len(placement.calls)):
            for call in self.placements.free(k):
                if call in placement.calls[k]:
                    continue
                other = placement.with_call(k, call)
                dearer = self.placements.cost(other)
                if most is not None and dearer > most:
                    continue
                own = (before - self.predicted(other)) / max(dearer - cost, 1e-6)
                if own > gain:
                    best, gain = other, own
        return best

    def _exchanged(self, placement: Placement, most: float, rounds: int = ROUNDS) -> Placement:
        """After the best exchange of one call for another, again and again."""
        least = self.predicted(placement)
        for _ in range(rounds):
            near = [other for other in self._exchanges(placement) if self.placements.cost(other) <= most]
            best = min(near, key=self.predicted, default=placement)
            if self.predicted(best) >= least:
                break
            placement, least = best, self.predicted(best)
        return placement

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


def _lowest(placement: Placement) -> Placement:
    """The same with the lowest orders that differ: a polynomial through few directions is of a low one."""
    orders = (min(order, max(0, len(calls) - 1)) for order, calls in zip(placement.orders, placement.calls, strict=True))
    return Placement(placement.calls, tuple(orders))
