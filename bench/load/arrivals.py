"""What comes to a server and when: a mix of requests, and a seeded Poisson process of them, the same for every server."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (8, 20, 28, 50)
AT_ONCE = math.inf  # a rate
SHARES = {"none": 0.3, "cfg": 0.3, "sgg": 0.3, "exit": 0.1}


@dataclass(frozen=True, order=True)
class Kind:
    """What a request asks for: a rule, as the benchmark names it, and a number of steps."""

    rule: str
    steps: int

    def __str__(self) -> str:
        return f"{self.rule}, {self.steps} steps"


@dataclass(frozen=True)
class Arrival:
    """A request for one picture, ``due`` seconds after the first could come."""

    kind: Kind
    seed: int
    due: float


@dataclass(frozen=True)
class Mix:
    """Rules by their shares of the requests, each with any of ``steps`` equally often."""

    shares: tuple[tuple[str, float], ...] = tuple(SHARES.items())
    steps: tuple[int, ...] = STEPS

    @classmethod
    def of(cls, rules: Sequence[str]) -> "Mix":
        """The usual mix of those ``rules`` that a model can follow; what the others leave is shared out in proportion."""
        whole = sum(SHARES[rule] for rule in rules)
        return cls(tuple((rule, SHARES[rule] / whole) for rule in rules))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Everything that a request may be."""
        return tuple(Kind(rule, steps) for rule, _ in self.shares for steps in self.steps)

    def __str__(self) -> str:
        rules = ", ".join(f"{rule} {share:.0%}" for rule, share in self.shares)
        return f"{rules}; {', '.join(map(str, self.steps))} steps"

    def arrivals(self, count: int, rate: float, seed: int) -> tuple[Arrival, ...]:
        """``count`` requests of a Poisson process of ``rate`` a second; ``AT_ONCE``: none waits for the one before it.

        The requests themselves are the same at every rate, and times differ by a factor.
        """
        kinds, gaps = random.Random(f"kinds {seed}"), random.Random(f"gaps {seed}")
        rules, shares = zip(*self.shares, strict=True)
        made, due = [], 0.0
        for number in range(count):
            due += gaps.expovariate(1.0) / rate
            kind = Kind(kinds.choices(rules, shares)[0], kinds.choice(self.steps))
            made.append(Arrival(kind, number, due))
        return tuple(made)
