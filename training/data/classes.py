"""Classes and their superclasses, of paths of names: the last is the class, and one level above gives the superclass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHOWN = 3  # names in a sentence
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class Classes:
    """How many classes there are, their names for people, the superclass of each, and the names of these.

    All but ``count`` may be empty.  Superclasses are numbered from 0 without a gap.
    """

    count: int
    names: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    parent_names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"there must be at least one class, got {self.count}")
        for name, values in (("names", self.names), ("parents", self.parents)):
            if values and len(values) != self.count:
                raise ValueError(f"{name} must be one for each of {self.count} classes, got {len(values)}")
        if self.parents and sorted(set(self.parents)) != list(range(max(self.parents) + 1)):
            raise ValueError("superclasses must be numbered from 0 without a gap")
        if self.parent_names and len(self.parent_names) != max(self.parents, default=-1) + 1:
            raise ValueError(f"parent_names must name each superclass, got {len(self.parent_names)}")

    @property
    def without_parents(self) -> "Classes":
        return Classes(self.count, self.names)


def listed(names: Sequence[str]) -> str:
    """The first of some names, quoted, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def check_tier(tier: int | str | None) -> int | str | None:
    """``tier`` with a number that stands in a text as a number; ``TypeError`` or ``ValueError`` for what cannot be one."""
    if isinstance(tier, bool) or not isinstance(tier, int | str | None):
        raise TypeError(f"tier must be a whole number or the name of a column, got {tier!r}")
    if isinstance(tier, str) and tier.lstrip("-").isdigit():
        tier = int(tier)
    if isinstance(tier, int) and tier < 0:
        raise ValueError(f"tier must be at least 0, got {tier}")
    if tier == "":
        raise ValueError("tier must not be empty, got ''")
    return tier


def classes_of_paths(
    paths: Sequence[tuple[str, ...]], tier: int | str | None, where: str
) -> tuple[Tensor, Classes, tuple[str, ...]]:
    """Labels [n] int64, classes and notes of samples whose class is a path of names from the widest to the class itself.

    All paths are equally long.  ``tier`` is the level of the superclasses: 1 is directly above the class, and what is taken by
    default where there is one; 0 is none.  Levels at the top with one name alone say nothing and are left out.
    """
    if isinstance(tier, str):
        raise ValueError(
            f"levels of folders have numbers, from 1 directly above the class; tier {tier!r} is the name of a column"
        )
    notes = []
    distinct = sorted(set(paths))
    depth = len(distinct[0])
    shared = 0
    while shared < depth - 1 and len({path[shared] for path in distinct}) == 1:
        shared += 1
    if shared:
        notes.append(f"all classes lie in {'/'.join(distinct[0][:shared])}, which is no level of its own")
    levels = depth - 1 - shared
    if levels:
        _refuse_splits({path[shared] for path in distinct}, where)
    chosen = min(1, levels) if tier is None else tier
    if chosen > levels:
        have = f"{levels} levels of folders" if levels != 1 else "1 level of folders"
        raise ValueError(f"{where} has {have} above the class: tier must lie in [0, {levels}], got {tier}")
    if levels > 1 and tier is None:
        notes.append(f"of {levels} levels above the class the one directly above gives the superclasses; tier chooses another")
    place = {path: number for number, path in enumerate(distinct)}
    labels = torch.tensor([place[path] for path in paths])
    names = _short_names([path[shared:] for path in distinct])
    if not chosen:
        return labels, Classes(len(distinct), names), tuple(notes)
    above = [path[: depth - chosen] for path in distinct]
    order = sorted(set(above))
    parents = tuple(order.index(path) for path in above)
    return labels, Classes(len(distinct), names, parents, _short_names([path[shared:] for path in order])), tuple(notes)


def _refuse_splits(top: set[str], where: str) -> None:
    """Parts of a data set are no superclasses: their classes would be told apart by the part that a picture lies in."""
    if all(name.lower() in SPLITS for name in top):
        first, *others = sorted(top)
        raise ValueError(f"{where} holds the parts {listed([first, *others])} of a data set; give one of them: {where}/{first}")


def _short_names(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The last name of each path, or where two are the same the whole paths."""
    last = tuple(path[-1] for path in paths)
    return last if len(set(last)) == len(last) else tuple("/".join(path) for path in paths)
