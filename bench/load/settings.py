"""How much load, and how it comes: the options of a load bench."""

from dataclasses import dataclass

from segue.engine.numeric_input import check_seed, counting_number, real_number


@dataclass(frozen=True)
class LoadSettings:
    """``requests`` in each of ``rounds``, whose sequences are seeded from ``seed`` on, to servers of up to ``slots`` at once.

    They come at ``rate``, a share of what request-level batching can serve.
    """

    requests: int = 200
    rate: float = 0.7
    slots: int = 8
    seed: int = 0
    rounds: int = 1

    def __post_init__(self):
        for name in ("requests", "slots", "rounds"):
            object.__setattr__(self, name, counting_number(getattr(self, name), name))
        check_seed(self.seed)
        rate = real_number(self.rate, "rate must be a share of saturation")
        if not 0 < rate < 1:  # also NaN; at 1 and above the queue grows as long as requests come
            raise ValueError(f"rate must be a share of saturation between 0 and 1, got {self.rate:g}")
        object.__setattr__(self, "rate", rate)

    @property
    def seeds(self) -> range:
        """Of the rounds."""
        return range(self.seed, self.seed + self.rounds)

    def at_once(self, model: str, seed: int) -> str:
        """The case in which all requests of a round come at once."""
        return f"{self._name(model)}, at once, seed {seed}"

    def open_loop(self, model: str, seed: int) -> str:
        """The case in which they come one by one."""
        return f"{self._name(model)}, {self.rate:.0%} of saturation, seed {seed}"

    def _name(self, model: str) -> str:
        return f"{model}, {self.slots} slots, {self.requests} requests"
