"""What the tuner has to do and in which order: entries of the launch table, and choices between backends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import torch

from .candidates import candidates
from .catalogue import SIZES, Case, Factory, cases
from .choice import CLASSIFIERS
from .contracts import contract
from .dispatch import BOUNDED, MORE_BACKENDS, WITHOUT_TRITON
from .launch import Key
from .launch_lookup import recorded_lookups, table_architecture
from .launch_table import TABLE
from .resources import case_launches, runs_on
from .shape_class import FULL_PRECISION
from .shares import nominal_seconds, share, weight


@dataclass(frozen=True)
class Choice:
    """The backends of one operation that compete at one shape class, and the cases on which they do."""

    operation: str
    shape_class: str
    cases: tuple[Case, ...]


@cache
def users(served: str) -> dict[Key, list[Case]]:
    """The cases of the catalogue behind every entry that they look up on the devices that an architecture serves."""
    found: dict[Key, list[Case]] = {}
    for size in SIZES:
        for case in cases(size):
            if not case.vendor:
                for key in lookups(case, served):
                    found.setdefault(key, []).append(case)
    return found


def lookups(case: Case, served: str) -> set[Key]:
    """The entries that a case looks up; one that is new to the table and has no neighbour starts as its first candidate."""
    while True:
        try:
            with recorded_lookups() as keys:
                case_launches(case, served)
            return keys
        except KeyError as missing:
            (key,) = missing.args
            TABLE[served][key] = candidates(key)[0]


@cache
def choices(architecture: str) -> tuple[Choice, ...]:
    """Every class of an operation with several backends; those in fp32 take the default and are no choice."""
    found: dict[tuple[str, str], list[Case]] = {}
    for size in SIZES:
        for case in cases(size):
            if case.operation in CLASSIFIERS and runs_on(case, architecture) and not case.alternative:
                shape_class = CLASSIFIERS[case.operation](*case.arguments(Factory(torch.device("meta"), torch.bfloat16)))
                if shape_class != FULL_PRECISION:
                    found.setdefault((case.operation, shape_class), []).append(case)
    return tuple(Choice(*key, tuple(alike)) for key, alike in found.items())


def eligible_backends(operation: str) -> list[str]:
    """The backends that may become the automatic choice: approximate ones only where the reference is approximate too."""
    own = ("reference",) if operation in WITHOUT_TRITON else ("reference", "triton")
    names = (name for name in (*own, *MORE_BACKENDS.get(operation, ())) if name != BOUNDED)
    return [name for name in names if contract(operation, name).bound is None or contract(operation).bound is not None]


@dataclass(frozen=True)
class Weighed:
    """A case that stands for all of its shapes, and what a second of it is worth in parts of a run."""

    case: Case
    weight: float

    @property
    def share(self) -> float:
        return self.weight * nominal_seconds(self.case)


def value(alike: Iterable[Case]) -> float:
    """The part of all runs that cases are."""
    return sum(map(share, alike))


def weighed(alike: Iterable[Case], part: float) -> list[Weighed]:
    """The cases of the largest shares that make up a part of all, those of the same shapes as one; at least one."""
    shapes: dict[tuple, list[Case]] = {}
    for case in alike:
        size = replace(case.size, name="", layers=1, exits=0, weight=1.0, dual=0, single=False, qk_norm=False)
        shapes.setdefault((case.operation, case.variant, case.dtype, case.bytes_moved, size), []).append(case)
    merged = [Weighed(same[0], sum(map(weight, same))) for same in shapes.values()]
    ordered, whole, taken = sorted(merged, key=lambda one: one.share, reverse=True), sum(one.share for one in merged), []
    for one in ordered:
        if taken and sum(other.share for other in taken) >= part * whole:
            break
        taken.append(one)
    return taken


def agenda(architecture: str, only: set[str]) -> list[Key | Choice]:
    """For a device: what a run gains most from first; each choice as soon as the entries of its own kernel are tuned.

    ``only``: operations of the launch table or of the kernels; all where it is empty.
    """
    served = table_architecture(architecture)
    able = {key: [case for case in alike if runs_on(case, architecture)] for key, alike in users(served).items()}
    entries = sorted(filter(able.get, able), key=lambda key: value(able[key]), reverse=True)
    waiting = sorted(choices(architecture), key=lambda choice: value(choice.cases), reverse=True)
    needed = {choice: _entries(choice, served) for choice in waiting}
    remaining, ordered = set(entries), []
    for entry in [*entries, None]:
        if entry:
            remaining.discard(entry)
            ordered.append(entry)
        least = value(able[entry]) if entry else 0.0
        for choice in list(waiting):
            if not needed[choice] & remaining and (needed[choice] or value(choice.cases) >= least):
                waiting.remove(choice)
                ordered.append(choice)

    def asked_for(item: Key | Choice) -> bool:
        if isinstance(item, Choice):
            return bool(only & {item.operation, *(operation for operation, _ in needed[item])})
        return bool(only & {item[0], *(case.operation for case in able[item])})

    return [item for item in ordered if not only or asked_for(item)]


def _entries(choice: Choice, served: str) -> set[Key]:
    """The entries that the choice's own kernel looks up; none where it has no kernel of its own."""
    return {key for case in choice.cases if not case.vendor for key in lookups(case, served)}
