"""Rules of a whole batch: one rule for all samples, one with numbers for each, or a list of one rule for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from segue.models.spec import ModelSpec

from .correction import Correction
from .drawn import Draw
from .guidance import Guidance
from .presets import ParsedRule, RuleLike, parse_rule, rule_and_notes
from .rule_text import SEPARATOR

Rules = Guidance | tuple[Guidance, ...]


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
    """One rule for each sample, all with corrections of the same kinds; a single one where it serves all.

    A rule without any has those of the others, with numbers that change nothing.  Raises ``ValueError`` for corrections of
    other kinds, and where none of a kind changes nothing and the rule has what it would change.
    """
    if isinstance(rules, Guidance):
        return (rules,) if rules.samples is None else tuple(map(rules.of_sample, range(rules.samples)))
    kinds = {tuple(correction.kind for correction in rule.corrections): rule.corrections for rule in rules if rule.corrections}
    if len(kinds) > 1:
        first, second, *_ = (" and ".join(map(str, corrections)) for corrections in kinds.values())
        raise ValueError(f"the rules of one batch hold corrections of one kind, got {first}, and {second}")
    (corrections,) = kinds.values() or [()]
    return tuple(rule if rule.corrections else _corrected(rule, corrections) for rule in rules)


def _corrected(rule: Guidance, corrections: Sequence[Correction]) -> Guidance:
    """``rule`` with ``corrections`` of the same kinds, which change nothing."""
    return replace(rule, corrections=tuple(_unchanging(rule, correction) for correction in corrections))


def _unchanging(rule: Guidance, correction: Correction) -> Correction:
    neutral = type(correction).neutral()
    if neutral is not None:
        return replace(neutral, **correction.constants)
    if any(term.branch.condition != "cond" for term in rule.terms):
        raise ValueError(
            f"{correction} acts on the reference of every sample of a batch, and another's rule has it uncorrected"
        )
    return correction.never_silent()
