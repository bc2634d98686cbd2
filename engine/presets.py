"""Guidance rules by name, with each model's default numbers, in a syntax short enough for a command line.

A rule is ``NAME`` or ``NAME:OPTION=VALUE,...``; rules add with ``+``::

    sgg      cfg:scale=3      slg:layers=7,8,weight=2      cfg:scale=4.5,window=steps:1-14 + slg:weight=3,layers=7-9
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from segue.models.mmdit_spec import MMDiTSpec
from segue.models.spec import ModelSpec

from .guidance import CFG, SGG, AutoGuidance, EarlyExit, Guidance, PerturbedLayers, SkipLayer, Unguided
from .selection import parse_integers
from .window import Window

# --- values ----------------------------------------------------------------------------------------------------------


def parse_number(text: str) -> float:
    """A number; whether it is finite and in range is for the rule to say."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, got {text!r}") from None


def parse_integer(text: str) -> int:
    numbers = parse_integers(text)
    if len(numbers) != 1:
        raise ValueError(f"expected one whole number, got {text!r}")
    return numbers[0]


def parse_layers(text: str) -> tuple[int, ...]:
    return tuple(parse_integers(text))


def parse_window(text: str) -> Window:
    """``sigma:LOW,HIGH``, ``fraction:START,STOP``, ``steps:FIRST,LAST`` or ``all``; a dash may stand for the comma."""
    kind, _, bounds = text.partition(":")
    if text == "all":
        return Window()
    parts = bounds.split(",") if "," in bounds else bounds.split("-")
    if kind not in ("sigma", "fraction", "steps") or len(parts) != 2:
        raise ValueError(f"expected a window such as sigma:0.2,0.8 or fraction:0,0.5 or steps:1,14, got {text!r}")
    low, high = (parse_number(part) for part in parts)
    return Window(kind, low, high)


def parse_switch(text: str) -> float | Window:
    """A noise level, or ``fraction:F`` of the steps (then the first segment as a window)."""
    if not text.startswith("fraction:"):
        return parse_number(text)
    return Window.fraction(0.0, parse_number(text.removeprefix("fraction:")))


def parse_reference(text: str) -> str | int:
    """``uncond``, ``parent`` or the number of a class."""
    return int(text) if text.isdigit() else text


def _number_text(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _value_text(option: str, value: Any) -> str:
    """A value as its parser reads it, exactly."""
    if isinstance(value, Window):
        bounds = (value.high,) if option == "switch" else (value.low, value.high)
        return "all" if value.kind == "all" else f"{value.kind}:{','.join(map(_number_text, bounds))}"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return _number_text(value) if isinstance(value, float) else str(value)


def _shown(option: str, value: Any) -> str:
    """A value for a person to read."""
    if isinstance(value, Window):
        return str(value)
    return _value_text(option, value).replace(",", ", ")


PARSERS: dict[str, Callable[[str], Any]] = {
    "scale": parse_number,
    "weight": parse_number,
    "delta": parse_number,
    "layers": parse_layers,
    "layer": parse_integer,
    "switch": parse_switch,
    "window": parse_window,
    "reference": parse_reference,
    "channels": parse_integer,
    "model": str,
}

# --- rules -----------------------------------------------------------------------------------------------------------


def _cfg(scale, reference="uncond", **options) -> Guidance:
    return CFG(scale, condition=reference, **options)


def _perturbed(kind: str) -> Callable[..., Guidance]:
    return lambda weight, layers, **options: PerturbedLayers(weight, layers, kind=kind, **options)


def _segmented(strong: Guidance, weak: Guidance, switch: float | Window) -> Guidance:
    if not isinstance(switch, Window):
        return SGG(strong, weak, switch)
    return strong.within(switch) + weak.within(Window.fraction(switch.high, 1.0))


@dataclass(frozen=True)
class RuleKind:
    """What a name stands for: a title for people, the options that are needed and those that are optional, a builder."""

    title: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    build: Callable[..., Guidance]


_TERM = ("delta", "window")
KINDS = {
    "none": RuleKind("Unguided", (), (), Unguided),
    "cfg": RuleKind("Classifier-free guidance", ("scale",), (*_TERM, "reference", "channels"), _cfg),
    "slg": RuleKind("Skip-layer guidance", ("weight", "layers"), _TERM, SkipLayer),
    "pag": RuleKind("Perturbed-attention guidance", ("weight", "layers"), _TERM, _perturbed("attention_identity")),
    "stg": RuleKind("Skipped-attention guidance", ("weight", "layers"), _TERM, _perturbed("attention_skip")),
    "seg": RuleKind("Blurred-attention guidance", ("weight", "layers"), _TERM, _perturbed("attention_blur")),
    "exit": RuleKind("Early-exit guidance", ("weight", "layer"), _TERM, EarlyExit),
    "ag": RuleKind("Autoguidance", ("weight",), (*_TERM, "model"), AutoGuidance),
    "sgg": RuleKind(
        "Segmented guidance",
        ("scale", "weight", "layers", "switch"),
        (),
        lambda scale, weight, layers, switch: _segmented(CFG(scale), SkipLayer(weight, layers), switch),
    ),
    "sgg-exit": RuleKind(
        "Segmented guidance, early exit",
        ("scale", "weight", "layer", "switch"),
        (),
        lambda scale, weight, layer, switch: _segmented(CFG(scale), EarlyExit(weight, layer), switch),
    ),
}

# Default numbers by model name and rule; a rule without a row needs its options written out.  The SD3 row is the published
# recipe (arXiv 2603.20584), 14 + 14 of 28 steps; skipping 7 to 9 damages SD3.5-large, which therefore has no layers here.
_SD3 = {
    "cfg": {"scale": 4.5},
    "slg": {"weight": 3.0, "layers": (7, 8, 9)},
    "sgg": {"scale": 4.5, "weight": 3.0, "layers": (7, 8, 9), "switch": Window.fraction(0.0, 0.5)},
}
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "herbarium": {
        "cfg": {"scale": 3.0},
        "slg": {"weight": 2.0, "layers": (7, 8)},
        "exit": {"weight": 1.0, "layer": 4},
        "ag": {"weight": 1.0},
        "sgg": {"scale": 3.0, "weight": 2.0, "layers": (7, 8), "switch": 0.6},
        "sgg-exit": {"scale": 3.0, "weight": 1.0, "layer": 4, "switch": 0.6},
    },
    "sd3-medium": _SD3,
    "sd3.5-medium": _SD3,
    "sd3.5-large": {"cfg": {"scale": 4.5}},
}

_SD3_SIZES = {  # depth, width, dual attention: SD3 checkpoints are told apart by size, their names are anybody's
    (24, 1536, False): "sd3-medium",
    (24, 1536, True): "sd3.5-medium",
    (38, 2432, False): "sd3.5-large",
}


def preset_name(model: str | ModelSpec) -> str:
    """The name under which a model's defaults are kept; its own name if there are none."""
    if isinstance(model, MMDiTSpec) and model.name not in DEFAULTS:
        return _SD3_SIZES.get((model.depth, model.dim, bool(model.dual_layers)), model.name)
    return model.name if isinstance(model, ModelSpec) else model


# --- parsing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedRule:
    """A rule by name with every option resolved; ``text`` parses to the same rule whatever the defaults are."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def guidance(self) -> Guidance:
        return KINDS[self.name].build(**dict(self.options))

    @property
    def text(self) -> str:
        options = ",".join(f"{option}={_value_text(option, value)}" for option, value in self.options)
        return f"{self.name}:{options}" if options else self.name

    @property
    def title(self) -> str:
        return KINDS[self.name].title

    @property
    def summary(self) -> str:
        """The options for a person to read."""
        return ", ".join(f"{option} {_shown(option, value)}" for option, value in self.options)


@dataclass(frozen=True)
class ParsedRule:
    """A sum of named rules."""

    parts: tuple[NamedRule, ...]

    @property
    def guidance(self) -> Guidance:
        return sum((part.guidance for part in self.parts), Unguided())

    @property
    def text(self) -> str:
        return " + ".join(part.text for part in self.parts)

    @property
    def title(self) -> str:
        return " + ".join(part.title for part in self.parts)

    @property
    def summary(self) -> str:
        return " + ".join(part.summary for part in self.parts)


def parse_rule(text: str, model: str | ModelSpec = "", options: Mapping[str, str] | None = None) -> ParsedRule:
    """Read a rule or a sum of rules; ``model``, such as ``engine.spec``, is the one whose default numbers apply.

    ``options`` are further ``option: value`` texts for a single rule, as command-line flags give them.  Raises
    ``ValueError`` with the known names or options.
    """
    texts, model = re.split(r"\+(?=\s*[A-Za-z])", text), preset_name(model)
    if options and len(texts) > 1:
        name, value = next(iter(options.items()))
        raise ValueError(f"{name} {value} belongs to one rule, but {text!r} is a sum; write it inside, as in cfg:{name}=...")
    rule = ParsedRule(tuple(_parse_one(part.strip(), model, dict(options or {})) for part in texts))
    _ = rule.guidance  # values out of range raise here
    return rule


def _parse_one(text: str, model: str, extra: dict[str, str]) -> NamedRule:
    name, _, rest = text.partition(":")
    name = name.strip()
    if name not in KINDS:
        raise ValueError(f"unknown guidance rule {name!r}; known: {', '.join(KINDS)}")
    kind = KINDS[name]
    given = _split_options(name, rest)
    for option in extra:
        if option in given:
            raise ValueError(f"{option} of {name} is given twice, as {given[option]} and as {extra[option]}")
    given |= extra
    known = (*kind.needed, *kind.optional)
    for option in given:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; it has: {', '.join(known) or 'none'}")
    values = {**DEFAULTS.get(model, {}).get(name, {}), **{option: _parse_value(option, given[option]) for option in given}}
    missing = [option for option in kind.needed if option not in values]
    if missing:
        where = f"model {model!r} has no default for it" if model else "no model is named to take defaults from"
        raise ValueError(f"{name} needs {' and '.join(missing)}: {where}; write {name}:{missing[0]}=...")
    return NamedRule(name, tuple((option, values[option]) for option in known if option in values))


def _split_options(name: str, text: str) -> dict[str, str]:
    """``a=1,b=2,3`` -> {a: "1", b: "2,3"}: a piece without ``=`` continues the value before it."""
    options: dict[str, str] = {}
    last = ""
    for piece in text.split(",") if text else ():
        option, equals, value = piece.partition("=")
        if not equals and not last:
            raise ValueError(f"options of {name} are written option=value, got {piece!r}")
        if not equals:
            options[last] += f",{piece.strip()}"
            continue
        last = option.strip()
        if last in options:
            raise ValueError(f"{last} of {name} is given twice, as {options[last]} and as {value.strip()}")
        options[last] = value.strip()
    return options


def _parse_value(option: str, text: str) -> Any:
    try:
        return PARSERS[option](text)
    except ValueError as error:
        raise ValueError(f"{option}={text}: {error}") from None
