"""Rules of a whole batch: one rule for all samples, one with numbers for each, or a list of one rule for each."""

import math
from collections.abc import Sequence
from dataclasses import replace

from segue.models.spec import ModelSpec

from .correction import AdaptiveProjection, OptimizedScale, RescaledDeviation
from .guidance import Correction, Guidance
from .presets import RuleLike, as_rule

Rules = Guidance | tuple[Guidance, ...]
RulesLike = RuleLike | Sequence[RuleLike]
NEUTRAL = {RescaledDeviation: {"phi": 0.0}, AdaptiveProjection: {"momentum": 0.0, "radius": math.inf, "eta": 1.0}}


def as_rules(rules: RulesLike, model: str | ModelSpec = "") -> Rules:
    """A rule as :func:`.presets.as_rule` reads it, or a tuple of one for each sample from a list.

    Raises ``TypeError`` or ``ValueError``, also for a rule in a list that has numbers for several samples itself.
    """
    if not isinstance(rules, list | tuple):
        return as_rule(rules, model)
    if not rules:
        raise ValueError(f"a list of rules holds one for each sample, got {rules!r}")
    read = tuple(as_rule(rule, model) for rule in rules)
    for rule in read:
        if rule.samples is not None:
            raise ValueError(f"a rule in a list is that of one sample, got {rule!r} with numbers for {rule.samples} samples")
    return read


def check_count(rules: Rules, count: int) -> None:
    """Raise ``ValueError`` for rules, or numbers of a rule, for another batch than ``count`` samples."""
    own = rules.samples if isinstance(rules, Guidance) else len(rules)
    if own is not None and own != count:
        raise ValueError(f"the rule has numbers for {own} samples, and there are {count}")


def sample_rules(rules: Rules) -> tuple[Guidance, ...] | None:
    """One rule for each sample, each with a correction of the same kind or none of them; None where one serves them all.

    Raises ``ValueError`` for corrections of two kinds, and for CFG-Zero* beside a rule with a reference but without it.
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
    guided = any(term.branch.condition != "cond" for term in rule.terms)
    if isinstance(correction, OptimizedScale) and guided:
        raise ValueError(f"{correction} fits the reference of every sample of its batch, and the rule of another has none")
    return replace(rule, correction=type(correction)(**NEUTRAL.get(type(correction), {})))
