"""Values of a rule's options as texts: read, and shown to people."""

import re
from collections.abc import Callable
from typing import Any

from ..numeric_input import number_from_text
from .call_scale import CALL
from .integers import parse_integers
from .rule_text import NONE, value_text
from .window import Window, segments


def parse_integer(text: str) -> int:
    numbers = parse_integers(text)
    if len(numbers) != 1:
        raise ValueError(f"expected one whole number, got {text!r}")
    return numbers[0]


def parse_each(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of one value for all samples, or of a list of one for each: ``2`` or ``2,4``; of a single sample ``2,``."""

    def parsed(text: str) -> Any:
        if "," not in text:
            return parse(text)
        *values, last = text.split(",")
        return tuple(map(parse, [*values, last] if last.strip() else values))

    return parsed


def parse_layers(text: str) -> tuple[int, ...]:
    return tuple(parse_integers(text))


def parse_scale(text: str) -> float | str:
    """A number, or ``call``: the scale that an attached pipeline is called with."""
    return CALL if text == CALL else number_from_text(text)


def parse_switch(text: str) -> float | Window:
    """A noise level, or the first segment as a window: ``fraction:F`` of the steps."""
    first, _ = segments(text)
    return first.low if first.kind == "sigma" else first


def parse_reference(text: str) -> str | int:
    """``uncond``, ``parent``, ``parent:N`` of the N-th tier above the class, or the number of a class."""
    return int(text) if text.isdecimal() else text


def parse_protected(text: str) -> tuple[int, ...]:
    """Layers, or ``none``."""
    try:
        return () if text == NONE else parse_layers(text)
    except ValueError as error:
        raise ValueError(f"{error}; or none") from None


def parse_names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in text.split(","))


def parse_template(text: str) -> str:
    """A text, in which a space follows every comma."""
    return ", ".join(piece.strip() for piece in text.split(","))


def shown_value(option: str, value: Any) -> str:
    """A value for a person to read."""
    if isinstance(value, Window):
        return str(value)
    return value_text(option, value).replace(",", ", ")


parse_numbers = parse_each(number_from_text)
CORRECTION_NUMBERS = (
    "phi", "momentum", "radius", "eta", "alpha", "a", "b", "gamma", "max_angle", "low", "high", "cutoff", "pi", "start", "peak",
    "most", "rho", "k", "width", "factor", "beta",
)  # fmt: skip
PARSERS: dict[str, Callable[[str], Any]] = {
    "scale": parse_each(parse_scale),
    "weight": parse_numbers,
    "delta": parse_numbers,
    "layers": parse_layers,
    "layer": parse_integer,
    "share": number_from_text,
    "seed": parse_integer,
    "protected": parse_protected,
    "switch": parse_switch,
    "window": Window.parse,
    "reference": parse_reference,
    "channels": parse_integer,
    "refresh": parse_integer,
    "order": parse_integer,
    "calls": parse_layers,
    "stop": number_from_text,
    "tau": parse_numbers,
    "zero_steps": parse_each(parse_integer),
    "levels": parse_integer,
    "model": str,
    **dict.fromkeys(CORRECTION_NUMBERS, parse_numbers),
    "classifier": str,
    "form": str,
    "gain": number_from_text,
    "lag": parse_integer,
    "source": str,
    "every": parse_integer,
    "interval": Window.parse,
    "temperature": number_from_text,
    "classes": parse_names,
    "template": parse_template,
}
PER_SAMPLE = ("scale", "weight", "delta", "tau", "zero_steps", *CORRECTION_NUMBERS)  # a tuple is one for each sample


def parse_value(option: str, text: str) -> Any:
    """The value that a text means for an option; raises ``ValueError`` that names it."""
    try:
        return PARSERS[option](text)
    except ValueError as error:
        raise ValueError(f"{option}={text}: {error}{_falling(option, text)}") from None


def _falling(option: str, text: str) -> str:
    """How to write a scale or weight from one number to another, if ``text`` is such."""
    ends = re.fullmatch(r"([\d.]+)\s*(?:-|to|\.\.|:)\s*([\d.]+)", text) if option in ("scale", "weight") else None
    try:
        first, last = map(float, ends.groups()) if ends else (0.0, 0.0)
    except ValueError:
        return ""
    middle, delta = (f"{number:.12g}" for number in ((first + last) / 2, (first - last) / 2))
    return f"; from {first:g} to {last:g} along the steps: {option}={middle},delta={delta}" if ends else ""
