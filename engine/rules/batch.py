"""Rules of a whole batch: one rule for all samples, one with numbers for each, or a list of one rule for each."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .correction import AdaptiveProjection, OptimizedScale, RescaledDeviation
from .guidance import Correction, Guidance, Unguided

Rules = Guidance | Sequence[Guidance | None]  # None: unguided
NEUTRAL = {RescaledDeviation: {"phi": 0.0}, AdaptiveProjection: {"momentum": 0.0, "radius": float("inf"), "eta": 1.0}}


def check_rules(rules: Any) -> Rules:
    """``rules`` as a rule or a tuple of a rule for each sample; None is unguided.  Raises ``TypeError`` or ``ValueError``."""
    if rules is None:
        return Unguided()
    if isinstance(rules, Guidance):
        return rules
    if not isinstance(rules, list | tuple):
        raise TypeError(f"guidance must be a Guidance rule, or a list of one for each sample, got {rules!r}")
    if not rules:
        raise ValueError("a list of rules holds one for each sample, got an empty one")
    for rule in rules:
        if not isinstance(rule, Guidance | None):
            raise TypeError(f"guidance must be a Guidance rule, or a list of one for each sample, got {rule!r} in it")
        if rule is not None and rule.samples is not None:
            raise ValueError(f"the rule of one sample of a list has one number each, got one for {rule.samples} samples")
    return tuple(Unguided() if rule is None else rule for rule in rules)


def check_count(rules: Rules, count: int) -> None:
    """Raise ``ValueError`` for rules, or numbers of a rule, for another batch than ``count`` samples."""
    own = rules.samples if isinstance(rules, Guidance) else len(rules)
    if own is not None and own != count:
        raise ValueError(f"the rule has numbers for {own} samples, and there are {count}")


def sample_rules(rules: Rules) -> tuple[Guidance, ...] | None:
    """One rule for each sample, each with a correction of the same kind or none of them; None where one serves them all.

    Raises ``ValueError`` for corrections of two kinds, and for CFG-Zero* beside a rule that has terms without it.
    """
    if isinstance(rules, Guidance):
        return None if rules.samples is None else tuple(map(rules.of_sample, range(rules.samples)))
    corrections = {type(rule.correction): rule.correction for rule in rules if rule.correction}
    if len(corrections) > 1:
        first, second, *_ = corrections.values()
        raise ValueError(f"the rules of one batch hold corrections of one kind, got {first} and {second}")
    for correction in corrections.values():
        return tuple(_corrected(rule, correction) for rule in rules)
    return tuple(rules)


def _corrected(rule: Guidance, correction: Correction) -> Guidance:
    """``rule`` with a correction of the kind of ``correction``, which changes nothing where it had none."""
    if rule.correction:
        return rule
    if isinstance(correction, OptimizedScale) and rule.terms:
        raise ValueError(f"{correction} fits the reference of every sample of its batch, and the rule of another has none")
    return replace(rule, correction=type(correction)(**NEUTRAL.get(type(correction), {})))
