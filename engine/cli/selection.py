"""One class and one seed for every picture of a command."""

from ..numeric_input import check_seed
from ..rules.integers import LARGEST_RANGE


def pair_samples(labels: list[int], seeds: list[int], count: int) -> tuple[list[int], list[int]]:
    """One label and one seed per picture, from the classes, the seeds and the number of pictures per class.

    A single class is drawn once per seed; a single seed ``s`` counts up, ``s, s + 1, ...``; otherwise there must be as many
    seeds as pictures.  Raises ``ValueError`` for a seed that is none.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if len(labels) * count > LARGEST_RANGE:
        raise ValueError(f"one command draws at most {LARGEST_RANGE} pictures, got {len(labels)} times {count}")
    labels = [label for label in labels for _ in range(count)]
    if len(labels) == 1:
        labels *= len(seeds)
    if len(seeds) == 1:
        seeds = list(range(seeds[0], seeds[0] + len(labels)))
    if len(seeds) != len(labels):
        raise ValueError(f"{len(seeds)} seeds do not fit {len(labels)} pictures; give one seed, or one for each picture")
    return labels, [check_seed(seed) for seed in seeds]
