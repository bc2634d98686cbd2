"""The network of a run: read from its record, made for a source of samples by a recipe's sizes or a published one's."""

from dataclasses import replace
from typing import Any

from segue.models.classifiers import ClassifierSpec
from segue.models.enhancer import EnhancerSpec
from segue.models.sizes import PATCHES, SIZES
from segue.models.spec import SiTSpec
from segue.models.weights import read_spec

from .data.source import Source, tiers_of
from .task import Spec


def spec_of(values: Any, where: str) -> Spec:
    """The spec in a run's record, JSON values that were read from ``where``; ``ValueError`` where it is none."""
    for kind in (ClassifierSpec, EnhancerSpec):
        if kind.describes(values):
            return kind(**values)
    return read_spec(values, where)


def fitted(spec: Spec, source: Source) -> Spec:
    """``spec`` for the samples and the classes of ``source``, and under its name; as it is where they are its own.

    Raises ``ValueError`` where the samples cannot be cut into the patches of ``spec``.
    """
    if isinstance(spec, SiTSpec):
        return fitted_sit(spec, source)
    if isinstance(spec, EnhancerSpec):
        raise ValueError(f"{spec.name} is trained on pairs of pictures that its recipe draws; leave --data {source.name} out")
    channels, height, width = source.shape
    if height != width:
        raise ValueError(f"a classifier reads square pictures, got {height} x {width}")
    return replace(spec, name=_named(spec, source), channels=channels, size=height, **_classes(source))


def fitted_sit(spec: SiTSpec, source: Source) -> SiTSpec:
    """:func:`fitted`, of a SiT or DiT."""
    channels, height, width = source.shape
    outputs = spec.out_channels // spec.channels * channels
    shape: dict[str, Any] = {"channels": channels, "height": height, "width": width, "out_channels": outputs}
    return replace(spec, name=_named(spec, source), **shape, **_classes(source), tiers=tiers_of(source))


def _classes(source: Source) -> dict[str, Any]:
    return {"num_classes": source.num_classes, "parents": source.parents, "class_names": source.class_names}


def _named(spec: SiTSpec | ClassifierSpec, source: Source) -> str:
    own = (spec.num_classes, spec.parents) == (source.num_classes, source.parents)
    return spec.name if own else source.name


def sized(spec: SiTSpec, text: str) -> SiTSpec:
    """``spec`` with the width, depth, heads and patch of a published size, as in ``S/2``; ``ValueError`` for another."""
    letter, _, patch = text.partition("/")
    if letter not in SIZES or patch not in map(str, PATCHES):
        raise ValueError(f"unknown size {text!r}; write one of {', '.join(SIZES)} and a patch of 2, 4 or 8, as in S/2")
    size = SIZES[letter]
    return replace(spec, patch=int(patch), dim=size.dim, depth=size.depth, heads=size.heads)
