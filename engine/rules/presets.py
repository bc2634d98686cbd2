"""Guidance rules by name, with each model's default numbers, in a syntax short enough for a command line.

A rule is ``NAME`` or ``NAME:OPTION=VALUE,...``; rules add with ``+``::

    sgg      cfg:scale=3      slg:layers=7,8,weight=2      cfg:scale=4.5,window=steps:1-14 + slg:weight=3,layers=7-9

A scale, a weight or another number of a rule may be a list, one for each sample of the batch: ``cfg:scale=2,4``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segue.models.spec import ModelSpec

from ..argument_names import advice, did_you_mean
from . import guided_corrections as guided
from . import reference_corrections as reference
from . import solver_corrections as scaling
from .calibration import Calibration, read_calibration
from .gfcg import GFCG, ICG
from .guidance import Guidance, Unguided
from .linear_rules import CFG, NAG, S2, SGG, AutoGuidance, CFGPlusPlus, EarlyExit, PerturbedLayers, SkipLayer
from .option_values import PER_SAMPLE, parse_value, shown_value
from .preset_numbers import DEFAULTS, RECIPES, WITHHELD, preset_name, usual_numbers
from .rule_names import NAMES
from .rule_text import PERTURBING, REUSE, named_text, rule_text
from .spectral_refinement import SpectralRefine
from .tuned_numbers import tuned_rules


def _cfg(scale, reference="uncond", **options) -> Guidance:
    return CFG(scale, condition=reference, **options)


def _perturbed(name: str) -> Callable[..., Guidance]:
    kind = next(kind for kind, known in PERTURBING.items() if known == name)
    return lambda weight, layers, **options: PerturbedLayers(weight, layers, kind=kind, **options)


@dataclass(frozen=True)
class RuleKind:
    """What a name stands for: a title for people, the options that are needed and those that are optional, a builder."""

    title: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    build: Callable[..., Guidance]


BUILDERS: dict[str, Callable[..., Guidance]] = {
    "none": Unguided,
    "cfg": _cfg,
    "slg": SkipLayer,
    **{name: _perturbed(name) for name in ("pag", "pag-image", "tpg", "stg", "seg")},
    "s2": S2,
    "exit": EarlyExit,
    "ag": AutoGuidance,
    "cfgpp": lambda scale, reference="uncond", **options: CFGPlusPlus(scale, condition=reference, **options),
    "nag": NAG,
    "gfcg": GFCG,
    "icg": ICG,
    "sgg": lambda scale, weight, layers, switch: SGG(CFG(scale), SkipLayer(weight, layers), switch),
    "sgg-exit": lambda scale, weight, layer, switch: SGG(CFG(scale), EarlyExit(weight, layer), switch),
    "zero-star": reference.CFGZeroStar,
    "apg": reference.APG,
    "tcfg": reference.TCFG,
    "mambo": reference.MAMBO,
    "power-law": reference.PowerLawCFG,
    "beta": reference.BetaCFG,
    "adg": reference.ADG,
    "perp-neg": reference.PerpNeg,
    "fdg": reference.FDG,
    "fresca": reference.FreSca,
    "fbg": reference.FBG,
    "rescale": guided.Rescale,
    "renorm": guided.Renorm,
    "energy": guided.EnergyPreserving,
    "higs": guided.HiGS,
    "tsr": scaling.TSR,
    "epsilon": scaling.EpsilonScaling,
    "refine": SpectralRefine,
}
KINDS = {name: RuleKind(named.title, named.needed, named.optional, BUILDERS[name]) for name, named in NAMES.items()}


def _part(option: str, value: Any, samples: slice) -> Any:
    return value[samples] if option in PER_SAMPLE and isinstance(value, tuple) else value


# --- parsing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedRule:
    """A rule by name with every option resolved; ``text`` parses to the same rule whatever the defaults are."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    note: str = field(default="", compare=False)  # which numbers are not the model's own

    @property
    def guidance(self) -> Guidance:
        options = dict(self.options)
        reuse = {option: options.pop(option) for option in REUSE if option in options}
        if set(reuse) == {"order"} and reuse["order"]:
            raise ValueError(f"order {reuse['order']} of {self.name} is of directions between calls: give refresh or calls too")
        stop = options.pop("stop", None)
        rule = KINDS[self.name].build(**options).reused(**reuse)
        return rule if stop is None else rule.adaptive(stop)

    @property
    def text(self) -> str:
        return named_text(self.name, self.options)

    def part(self, samples: slice) -> "NamedRule":
        """The rule of some of the samples of its batch."""
        options = ((option, _part(option, value, samples)) for option, value in self.options)
        return NamedRule(self.name, tuple(options), self.note)

    @property
    def title(self) -> str:
        return KINDS[self.name].title

    @property
    def summary(self) -> str:
        """The options for a person to read."""
        return ", ".join(f"{option} {shown_value(option, value)}" for option, value in self.options)

    def own_numbers(self, sample: int) -> list[str]:
        """The options of which samples have numbers that differ, with the number of one of them."""
        each = ((option, value) for option, value in self.options if option in PER_SAMPLE and isinstance(value, tuple))
        return [f"{option} {shown_value(option, value[sample])}" for option, value in each if len(set(value)) > 1]


@dataclass(frozen=True)
class ParsedRule:
    """A sum of named rules."""

    parts: tuple[NamedRule, ...]
    calibration: Calibration | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Which numbers are the usual ones, for want of the model's own; empty where none are."""
        return tuple(part.note for part in self.parts if part.note)

    @property
    def guidance(self) -> Guidance:
        return replace(sum((part.guidance for part in self.parts), Unguided()), calibration=self.calibration)

    def calibrated(self, calibration: "str | Path | Calibration") -> "ParsedRule":
        """As :meth:`.guidance.Guidance.calibrated`; the text names the calls."""
        rule = self.guidance.calibrated(calibration)
        return replace(parse_rule(rule_text(rule)), calibration=rule.calibration)

    @property
    def text(self) -> str:
        return " + ".join(part.text for part in self.parts)

    def part(self, samples: slice) -> "ParsedRule":
        """The rule of some of the samples of its batch."""
        return ParsedRule(tuple(part.part(samples) for part in self.parts))

    @property
    def title(self) -> str:
        return " + ".join(part.title for part in self.parts)

    @property
    def summary(self) -> str:
        return " + ".join(filter(None, (part.summary for part in self.parts)))

    def of_sample(self, sample: int) -> str:
        """What of the rule is that of one sample of its batch alone, as ``scale 2``; empty where all share it."""
        return ", ".join(text for part in self.parts for text in part.own_numbers(sample))


RuleLike = Guidance | ParsedRule | NamedRule | str | None


def as_rule(rule: RuleLike, model: str | ModelSpec = "") -> Guidance:
    """A rule from one, from its text by the numbers of ``model``, or from None, which is unguided.

    Raises ``ValueError`` as :func:`parse_rule`, ``TypeError`` for anything else.
    """
    return rule_and_notes(rule, model)[0]


def rule_and_notes(rule: RuleLike, model: str | ModelSpec = "") -> tuple[Guidance, tuple[str, ...]]:
    """As :func:`as_rule`, and what its text left to usual numbers."""
    if rule is None:
        return Unguided(), ()
    if isinstance(rule, str):
        rule = parse_rule(rule, model)
    if isinstance(rule, NamedRule):
        rule = ParsedRule((rule,))
    if isinstance(rule, ParsedRule):
        return rule.guidance, rule.notes
    if not isinstance(rule, Guidance):
        raise TypeError(f"guidance must be a rule such as CFG(4.5), or its text such as 'cfg:scale=4.5', got {rule!r}")
    return rule, ()


def parse_rule(text: str, model: str | ModelSpec = "", options: Mapping[str, str] | None = None) -> ParsedRule:
    """Read a rule or a sum of rules; ``model``, such as ``engine.spec``, is the one whose default numbers apply.

    A spec without numbers of its own has the usual ones, as the rule's ``notes`` say; a mere name has not.  ``options`` are
    further ``option: value`` texts for a single rule, as command-line flags give them.  A name alone may be a sum of the
    model's makers, as ``slg`` is on SD3; with a colon it is always the one rule.  Raises ``ValueError`` with the known names
    or options, and for a value of the wrong kind.
    """
    texts, spec, model = re.split(r"\+(?=\s*[A-Za-z])", text), model, preset_name(model)
    if options and len(texts) > 1:
        name, value = next(iter(options.items()))
        raise ValueError(f"{name} {value} belongs to one rule, but {text!r} is a sum; write it inside, as in cfg:{name}=...")
    recipe = RECIPES.get(model, {}).get(text.strip())
    if recipe:
        rule = _parse_recipe(text.strip(), recipe, model, dict(options or {}))
    else:
        rule = ParsedRule(tuple(_parse_one(part.strip(), model, dict(options or {}), spec=spec) for part in texts))
    try:
        _ = rule.guidance  # values out of range raise here
    except TypeError as error:  # of a text a value of the wrong kind is one that does not fit
        raise ValueError(str(error)) from None
    return rule


def calibrated_rule(calibration: "str | Path | Calibration") -> ParsedRule:
    """The rule that a calibration was made for, calibrated; raises as :func:`.calibration.read_calibration`."""
    found = read_calibration(calibration)
    return parse_rule(found.rule).calibrated(found)


def _parse_recipe(name: str, recipe: Mapping[str, Mapping[str, Any]], model: str, extra: Mapping[str, str]) -> ParsedRule:
    """A sum that a name stands for; an option goes to the rule of that name if it has it, else to the other that has."""
    owned: dict[str, dict[str, str]] = {part: {} for part in recipe}
    for option, value in extra.items():
        owners = [part for part in (name, *recipe) if option in (*KINDS[part].needed, *KINDS[part].optional)]
        owned[owners[0] if owners else name][option] = value
    return ParsedRule(tuple(_parse_one(part, model, owned[part], recipe[part]) for part in recipe))


def _parse_one(
    text: str,
    model: str,
    extra: Mapping[str, str],
    changes: Mapping[str, Any] | None = None,
    spec: str | ModelSpec = "",
) -> NamedRule:
    """One rule; ``extra`` are options given apart from the text, ``changes`` values that replace the model's defaults.

    A ``spec`` has usual numbers for options without a default.
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    if name not in KINDS:
        raise ValueError(f"unknown guidance rule {name!r}; known: {', '.join(KINDS)}{_meant(name)}")
    kind = KINDS[name]
    given = _split_options(name, rest)
    for option in extra:
        if option in given:
            raise ValueError(f"{option} of {name} is given twice, as {given[option]} and as {extra[option]}")
    given |= extra
    known = (*kind.needed, *kind.optional)
    for option in given:
        if option not in known:
            near = advice(option, list(known))
            said = f"{name} has no option {option!r}; it has: {', '.join(known) or 'none'}"
            raise ValueError(f"{said}; {near}" if near else said)
    values = {**default_options(model, name), **(changes or {})}
    values |= {option: parse_value(option, given[option]) for option in given}
    missing = [option for option in kind.needed if option not in values]
    usual = _usual(name, missing, model, spec)
    values |= usual
    missing = [option for option in missing if option not in usual]
    if missing:
        where = f"model {model!r} has no default for it" if model else "no model is named to take defaults from"
        if (model, missing[0]) in WITHHELD:
            where += f", because {WITHHELD[model, missing[0]]}"
        raise ValueError(f"{name} needs {' and '.join(missing)}: {where}; write {name}:{missing[0]}=...")
    note = ""
    if usual:
        note = f"no tuned numbers of {name} for {model}, using {named_text('', usual.items())[1:]}"
    return NamedRule(name, tuple((option, values[option]) for option in known if option in values), note)


def _meant(text: str) -> str:
    """What an unknown rule may have been meant as: a number that lacks its option, or another name."""
    bare = re.fullmatch(r"([a-z-]+?)[\s=(]*([\d.]+)\)?", text)
    if bare and bare[1] in KINDS and KINDS[bare[1]].needed:
        return f"; write {bare[1]}:{KINDS[bare[1]].needed[0]}={bare[2]}"
    near = did_you_mean(text, KINDS)
    return f"; {near}" if near else ""


def _usual(rule: str, missing: Sequence[str], model: str, spec: str | ModelSpec) -> dict[str, Any]:
    """Usual values for options that a rule lacks, where the model is known and nothing speaks against them."""
    if isinstance(spec, str):
        return {}
    numbers = usual_numbers(spec, rule)
    return {option: numbers[option] for option in missing if option in numbers and (model, option) not in WITHHELD}


def default_options(model: str, name: str) -> dict[str, Any]:
    """The default numbers of a rule for a model: those that a search found, where there was one, else those written here."""
    tuned = tuned_rules(model)
    if tuned is None:
        return dict(DEFAULTS.get(model, {}).get(name, {}))
    _, _, options = tuned.get(name, name).partition(":")
    return {option: parse_value(option, value) for option, value in _split_options(name, options).items()}


def default_rules(model: str | ModelSpec) -> tuple[str, ...]:
    """The names of the rules that have default numbers for a model."""
    name = preset_name(model)
    tuned = tuned_rules(name)
    return tuple(DEFAULTS.get(name, {}) if tuned is None else tuned)


def _split_options(name: str, text: str) -> dict[str, str]:
    """``a=1,b=2,3`` -> {a: "1", b: "2,3"}: a piece without ``=`` continues the value before it."""
    options: dict[str, str] = {}
    last = ""
    for piece in text.split(",") if text else ():
        option, equals, value = piece.partition("=")
        if not equals and not last:
            needed = "".join(f", as in {name}:{option}={piece.strip()}" for option in KINDS[name].needed[:1])
            raise ValueError(f"options of {name} are written option=value{needed}, got {piece!r}")
        if not equals:
            options[last] += f",{piece.strip()}"
            continue
        last = option.strip()
        if last in options:
            raise ValueError(f"{last} of {name} is given twice, as {options[last]} and as {value.strip()}")
        options[last] = value.strip()
    return options
