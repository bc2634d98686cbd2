"""Classes and their superclasses, of paths of names: the last is the class, and one level above gives the superclass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.models.spec import check_tiers

SHOWN = 3  # names in a sentence
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class Classes:
    """How many classes there are, their names for people, the superclass of each, and the names of these.

    ``tiers`` are the ancestors of every class above its superclass, the nearest tier first.  All but ``count`` may be empty.
    Superclasses are numbered from 0 without a gap.
    """

    count: int
    names: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    parent_names: tuple[str, ...] = ()
    tiers: tuple[tuple[int, ...], ...] = ()

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
        check_tiers(self.parents, self.tiers)

    @property
    def without_parents(self) -> "Classes":
        return Classes(self.count, self.names)


def listed(names: Sequence[str]) -> str:
    """The first of some names, quoted, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def check_tier(tier: int | str | None) -> int | str | None:
    """``tier`` with a number that stands in a text as a number; ``TypeError`` or ``ValueError`` for what cannot be one.

    Text with commas names several tiers, the nearest first, and stays as it is.
    """
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
    default where there is one; 0 is none; ``1,2`` takes the second for a tier above them, and so on.  Levels at the top with
    one name alone say nothing and are left out.
    """
    tier, further = _levels(tier)
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
    parents, order = _above(distinct, chosen)
    tiers = []
    for level in further:
        if level > levels:
            raise ValueError(f"{where} has levels 1 to {levels} above the class: tier must lie among them, got {level}")
        tiers.append(_above(distinct, level)[0])
    found = Classes(len(distinct), names, parents, _short_names([path[shared:] for path in order]), tuple(tiers))
    return labels, found, tuple(notes)


def _above(paths: Sequence[tuple[str, ...]], level: int) -> tuple[tuple[int, ...], list[tuple[str, ...]]]:
    """The ancestor of every class ``level`` levels above it, and the paths of the ancestors in their order."""
    above = [path[: len(path) - level] for path in paths]
    order = sorted(set(above))
    place = {path: number for number, path in enumerate(order)}
    return tuple(place[path] for path in above), order


def tier_names(tier: int | str | None) -> list[str]:
    """The tiers that ``tier`` names one by one: several where it is text with commas."""
    return [part.strip() for part in tier.split(",")] if isinstance(tier, str) and "," in tier else []


def _levels(tier: int | str | None) -> tuple[int | str | None, list[int]]:
    """The level of the superclasses, and those of the tiers above them."""
    names = tier_names(tier)
    if not names:
        return tier, []
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise ValueError(f"levels of folders have numbers, from 1 directly above the class; got tier {tier!r}")
    first, *further = map(int, names)
    if sorted({first, *further}) != [first, *further]:
        raise ValueError(f"the levels of tiers rise from the class upwards, got {tier!r}")
    return first, further


def _refuse_splits(top: set[str], where: str) -> None:
    """Parts of a data set are no superclasses: their classes would be told apart by the part that a picture lies in."""
    if all(name.lower() in SPLITS for name in top):
        first, *others = sorted(top)
        raise ValueError(f"{where} holds the parts {listed([first, *others])} of a data set; give one of them: {where}/{first}")


def _short_names(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The last name of each path, or where two are the same the whole paths."""
    last = tuple(path[-1] for path in paths)
    return last if len(set(last)) == len(last) else tuple("/".join(path) for path in paths)
