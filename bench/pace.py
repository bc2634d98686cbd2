"""How long a case will take: from its arithmetic and the ceilings of a card, or from what the cases before it took."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .timing import MIN_ROUNDS

SHARE = 0.5  # of the large product: what plain PyTorch at the sizes of real models reaches
ROUNDS = MIN_ROUNDS + 2  # with the warm-up, and gates as much as another one


@dataclass
class Pace:
    """Estimates of a run.  ``rate`` gives FLOP per second where that is measured in no time, else it is None.

    On a card a case costs its set-up, as long as that of the case of nearest size so far, and its arithmetic: small cases wait
    for launches, so their speed says nothing of large ones.  Elsewhere arithmetic is all, and time grows with it.
    """

    rate: Callable[[], float] | None = None
    finished: list[tuple[float, float]] = field(default_factory=list)  # FLOPs of a round, seconds of the case

    def record(self, flops: float, seconds: float) -> None:
        """A case with rounds of so many FLOPs took so long, set-up and gates included."""
        self.finished.append((flops, seconds))

    def estimate(self, flops: float) -> float:
        """Seconds that a case with rounds of so many FLOPs will take; 0 where nothing is known, also of its FLOPs."""
        if not flops:
            return 0.0
        smaller = [one for one in self.finished if one[0] <= flops]
        base, seconds = max(smaller) if smaller else min(self.finished, default=(0.0, 0.0))
        if self.rate is not None:
            return seconds + ROUNDS * max(flops - base, 0.0) / (SHARE * self.rate())
        return seconds * (flops / base if base else 1.0)
