"""Samples that are drawn for a measurement: how many, from which seeds, in batches of one size or of two that differ by one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..scores.intervals import SETS


@dataclass(frozen=True)
class Draw:
    """``samples`` of classes spread over all, from the seeds that begin at ``first_seed``, at most ``batch`` at once."""

    least: ClassVar[int] = SETS  # samples

    samples: int
    first_seed: int = 0
    batch: int = 32

    def __post_init__(self):
        self.check(samples=self.least, first_seed=0, batch=1)

    def check(self, **least: int) -> None:
        """Raise ``ValueError`` for a field that is no whole number of at least so much."""
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < bound:
                raise ValueError(f"{name} must be a whole number of at least {bound}, got {value!r}")

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.samples)

    @property
    def batches(self) -> int:
        return -(-self.samples // self.batch)

    def labels(self, classes: int) -> list[int]:
        """The class of every sample."""
        return [index * max(classes // self.samples, 1) % classes for index in range(self.samples)]

    def parts(self, classes: int) -> Iterator[tuple[list[int], list[int]]]:
        """Labels and seeds of each batch."""
        labels, seeds = np.array(self.labels(classes)), np.array(self.seeds)
        for indices in np.array_split(np.arange(self.samples), self.batches):
            yield labels[indices].tolist(), seeds[indices].tolist()

    def check_apart(self, judgement: "Draw") -> None:
        """Raise ``ValueError`` where the samples of a search, these, have seeds in common with those that judge."""
        common = range(max(self.first_seed, judgement.first_seed), min(self.seeds.stop, judgement.seeds.stop))
        if common:
            raise ValueError(
                f"what is searched on must not judge: seeds {common.start} to {common.stop - 1} are in both, "
                f"{self.samples} from {self.first_seed} and {judgement.samples} from {judgement.first_seed}"
            )
