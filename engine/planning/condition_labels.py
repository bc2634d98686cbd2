"""The labels that conditions of a plan stand for, on models of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segue.models.spec import SiTSpec, tier_of

from ..rules.drawn import Draw, plain_condition
from .plan import Condition


def condition_labels(spec: SiTSpec, conditions: Sequence[Condition], labels: Sequence[int]) -> dict[Condition, Tensor]:
    """Labels [B] for every condition beside the samples' own ``labels``; of drawn ones those where nothing was chosen."""
    return {condition: torch.tensor(_labels(spec, condition, labels), device="cpu") for condition in conditions}


def _labels(spec: SiTSpec, condition: Condition, labels: Sequence[int]) -> list[int]:
    plain = plain_condition(condition) if isinstance(condition, Draw) else condition
    if plain == "cond":
        return list(labels)
    if plain == "uncond":
        return [spec.null_label] * len(labels)
    if tier := tier_of(plain):
        return [spec.parent_label(label, tier) for label in labels]
    return [int(plain)] * len(labels)
