"""Integers written as text: ``3``, ``0-7``, ``0-23:2``, ``0,4,9``."""

import re
from collections.abc import Iterable

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
LARGEST_RANGE = 1 << 20


def parse_integers(text: str) -> list[int]:
    """Integers from a comma-separated list of numbers and ranges ``first-last`` or ``first-last:stride``, ends included."""
    numbers: list[int] = []
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece.strip())
        if not match:
            raise ValueError(f"expected numbers such as 3 or 0-7 or 0,4,9, got {text!r}")
        first = int(match[1])
        last, stride = int(match[2] or first), int(match[3] or 1)
        if last < first or stride < 1 or last - first >= LARGEST_RANGE:
            raise ValueError(f"a range runs from low to high, at most {LARGEST_RANGE} long, got {piece.strip()!r}")
        numbers += range(first, last + 1, stride)
    return numbers


def ranges_text(numbers: Iterable[int]) -> str:
    """Rising integers as :func:`parse_integers` reads them, those in a row as a range: ``1-3,7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
