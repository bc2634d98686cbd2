"""Solvers as text, a name and the options that differ from its own: ``unipc(order=3, kind=bh1)``."""

import math
import re
from collections.abc import Sequence
from typing import Any

from ..numeric_input import real_number


def named(name: str, **options: tuple[Any, Any]) -> str:
    """``name`` with the options, each given as (value, default), that differ from their defaults."""
    differing = [f"{key}={str(value).lower()}" for key, (value, default) in options.items() if value != default]
    return f"{name}({', '.join(differing)})" if differing else name


def read_name(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options that a text gives; a value is a number, ``true``, ``false`` or a word.

    Raises ``ValueError`` for a text that is none.
    """
    found = re.fullmatch(r"\s*([^\s()]+)\s*(?:\((.*)\))?\s*", text)
    pairs = [part.split("=") for part in (found[2] or "").split(",") if part.strip()] if found else []
    if not found or any(len(pair) != 2 or not pair[0].strip().isidentifier() for pair in pairs):
        raise ValueError(f"a solver is a name, or a name and its options as in 'unipc(order=3)', got {text!r}")
    options = {key.strip(): _value(value.strip()) for key, value in pairs}
    if len(options) < len(pairs):
        raise ValueError(f"an option of a solver is given once, got {text!r}")
    return found[1], options


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def checked_choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``, else ``ValueError``."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
    return value


def checked_flag(value: Any, name: str) -> bool:
    """``value`` if it is true or false, else ``TypeError``."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {value!r}")
    return value


def checked_share(value: Any, name: str) -> float:
    """``value`` as a float in [0, 1].  Raises ``TypeError`` or ``ValueError``."""
    share = real_number(value, f"{name} must be a number")
    if not math.isfinite(share) or not 0 <= share <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {share:g}")
    return share
