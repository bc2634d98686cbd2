"""Rules of a whole batch: one rule for all samples, one with numbers for each, or a list of one rule for each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from segue.models.spec import ModelSpec

from .correction import AdaptiveProjection, OptimizedScale, RescaledDeviation
from .drawn import Draw
from .guidance import Correction, Guidance
from .presets import ParsedRule, RuleLike, parse_rule, rule_and_notes
from .rule_text import SEPARATOR

Rules = Guidance | tuple[Guidance, ...]
NEUTRAL: dict[type, dict[str, float]] = {
    OptimizedScale: {},
    RescaledDeviation: {"phi": 0.0},
    AdaptiveProjection: {"momentum": 0.0, "radius": math.inf, "eta": 1.0},
}


@dataclass(frozen=True)
class ParsedRules:
    """A rule for each sample of a batch, by name."""

    rules: tuple[ParsedRule, ...]

    @property
    def guidance(self) -> tuple[Guidance, ...]:
        return tuple(rule.guidance for rule in self.rules)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which numbers are the usual ones, for want of the model's own."""
        return tuple(dict.fromkeys(note for rule in self.rules for note in rule.notes))

    @property
    def text(self) -> str:
        return SEPARATOR.join(rule.text for rule in self.rules)

    @property
    def title(self) -> str:
        return SEPARATOR.join(dict.fromkeys(rule.title for rule in self.rules))

    @property
    def summary(self) -> str:
        return SEPARATOR.join(rule.summary for rule in self.rules)

    def of_sample(self, sample: int) -> str:
        """The text of one sample's rule; empty where all are the same."""
        return self.rules[sample].text if len(set(self.rules)) > 1 else ""

    def part(self, samples: slice) -> "ParsedRules":
        """The rules of some of the samples."""
        return ParsedRules(self.rules[samples])


RulesLike = RuleLike | ParsedRules | Sequence[RuleLike]


def parse_rules(text: str, model: str | ModelSpec = "", options: Mapping[str, str] | None = None) -> ParsedRule | ParsedRules:
    """A rule as :func:`.presets.parse_rule` reads it, or one for each sample, with ``|`` between them.

    Raises ``ValueError`` as that and as :func:`as_rules`, and for ``options`` of several rules.
    """
    texts = text.split(SEPARATOR.strip())
    if len(texts) == 1:
        return parse_rule(text, model, options)
    for option, value in (options or {}).items():
        raise ValueError(f"{option} {value} belongs to one rule, but {text!r} is one for each sample; write it inside")
    parsed = ParsedRules(tuple(parse_rule(one, model) for one in texts))
    plain_rules(as_rules([rule.guidance for rule in parsed.rules]))  # those that do not fit together raise here
    return parsed


def as_rules(rules: RulesLike, model: str | ModelSpec = "") -> Rules:
    """A rule as :func:`.presets.as_rule` reads it, or a tuple of one for each sample from a list.

    Raises ``TypeError`` or ``ValueError``, also for a rule in a list that has numbers for several samples itself.
    """
    return rules_and_notes(rules, model)[0]


def rules_and_notes(rules: RulesLike, model: str | ModelSpec = "") -> tuple[Rules, tuple[str, ...]]:
    """As :func:`as_rules`, and what texts left to usual numbers."""
    if isinstance(rules, str):
        rules = parse_rules(rules, model)
    if isinstance(rules, ParsedRules):
        return rules.guidance, rules.notes
    if not isinstance(rules, Sequence):
        return rule_and_notes(rules, model)
    if not rules:
        raise ValueError(f"a list of rules holds one for each sample, got {rules!r}")
    read = [rule_and_notes(rule, model) for rule in rules]
    for rule, _ in read:
        if rule.samples is not None:
            raise ValueError(f"a rule in a list is that of one sample, got {rule!r} with numbers for {rule.samples} samples")
    return tuple(rule for rule, _ in read), tuple(dict.fromkeys(note for _, notes in read for note in notes))


def with_call_scale(rules: Rules, scale: float) -> Rules:
    """``rules`` with ``scale`` where they take that of a call."""
    return rules.with_call_scale(scale) if isinstance(rules, Guidance) else tuple(one.with_call_scale(scale) for one in rules)


def takes_call_scale(rules: Rules) -> bool:
    """Whether a scale is that of the call of an attached pipeline."""
    return any(rule.takes_call_scale for rule in ((rules,) if isinstance(rules, Guidance) else rules))


def check_count(rules: Rules, count: int) -> None:
    """Raise ``ValueError`` for rules, or numbers of a rule, for another batch than ``count`` samples."""
    own, what = (rules.samples, "rule has numbers") if isinstance(rules, Guidance) else (len(rules), "list has rules")
    if own is not None and own != count:
        raise ValueError(f"the {what} for {own} samples, and there are {count}")


def refuse_draws(rules: Rules) -> None:
    """Raise ``ValueError`` for a rule that draws prompts, where there are only those of the caller."""
    for rule in plain_rules(rules):
        for term in rule.terms:
            if isinstance(term.branch.condition, Draw):
                raise ValueError(
                    f"a {term.branch} needs the prompts of its classes, and an attached pipeline gives its own alone: use "
                    "Engine.from_pipe(pipe).generate"
                )


def is_shared(rules: Rules) -> bool:
    """Whether one rule with one of each number serves all samples."""
    return isinstance(rules, Guidance) and rules.samples is None


def plain_rules(rules: Rules) -> tuple[Guidance, ...]:
    """One rule for each sample, each with a correction of the same kind or none of them; a single one where it serves all.

    Raises ``ValueError`` for corrections of two kinds, and for CFG-Zero* beside a rule with a reference but without it.
    """
    if isinstance(rules, Guidance):
        return (rules,) if rules.samples is None else tuple(map(rules.of_sample, range(rules.samples)))
    corrections = {type(rule.correction): rule.correction for rule in rules if rule.correction}
    if len(corrections) > 1:
        first, second, *_ = corrections.values()
        raise ValueError(f"the rules of one batch hold corrections of one kind, got {first} and {second}")
    (correction,) = corrections.values() or [None]
    return rules if correction is None else tuple(_corrected(rule, correction) for rule in rules)


def _corrected(rule: Guidance, correction: Correction) -> Guidance:
    """``rule`` with a correction of the kind of ``correction``, which changes nothing where it had none."""
    if rule.correction:
        return rule
    guided = any(term.branch.condition != "cond" for term in rule.terms)
    if isinstance(correction, OptimizedScale) and guided:
        raise ValueError(
            f"{correction} acts on the reference of every sample of a batch, and another's rule has it uncorrected"
        )
    return replace(rule, correction=type(correction)(**NEUTRAL[type(correction)]))
