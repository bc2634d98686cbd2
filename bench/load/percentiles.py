"""The four figures that latencies are told by."""

from dataclasses import asdict, dataclass

import numpy as np

from ..timing import Statistic, finite_samples


@dataclass(frozen=True)
class Percentiles:
    """Mean and percentiles of samples [n], n >= 1, between which values are interpolated."""

    mean: float
    p50: float
    p95: float
    p99: float
    n: int

    @classmethod
    def of(cls, samples: np.ndarray) -> "Percentiles":
        """Raises ``ValueError`` for no samples, and for one that is not finite."""
        samples = finite_samples(samples)
        return cls(float(samples.mean()), *map(float, np.percentile(samples, (50, 95, 99))), samples.size)

    def statistics(self) -> dict[str, Statistic]:
        """Each figure as the value of a row, found once on so many samples."""
        figures = asdict(self)
        count = figures.pop("n")
        return {name: Statistic(value, value, value, count) for name, value in figures.items()}
