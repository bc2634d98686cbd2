"""Numbers and classes chosen by text: ``3``, ``0-7``, ``0-23:2``, ``all``, species names."""

from collections.abc import Sequence

from ..numeric_input import check_seed
from ..rules.integers import LARGEST_RANGE, parse_integers


def parse_labels(text: str, classes: int, names: Sequence[str], model: str) -> list[int]:
    """Labels from numbers, ranges, ``all``, class names or the first word of class names (a genus), comma-separated.

    ``classes`` is the number of classes of ``model`` and ``names`` what they are called (empty: they have no names).
    Raises ``ValueError`` for a name or number that is none of them.
    """
    labels: list[int] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if piece == "all":
            labels += range(classes)
        elif piece[:1].isdigit():
            labels += parse_integers(piece)
        else:
            labels += _labels_named(piece, names, classes, model)
    for label in labels:
        if label >= classes:
            raise ValueError(f"class {label} is out of range: {model} has classes 0 to {classes - 1}")
    return labels


def _labels_named(name: str, names: Sequence[str], classes: int, model: str) -> list[int]:
    folded = [known.casefold() for known in names]
    if name.casefold() in folded:
        return [folded.index(name.casefold())]
    genus = [label for label, known in enumerate(folded) if known.split()[:1] == [name.casefold()]]
    if genus:
        return genus
    known = f"0 to {classes - 1}, all" + (f", or names such as {names[0]!r}" if names else "; its classes have no names")
    raise ValueError(f"{model} has no class {name!r}; it has {known}")


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
