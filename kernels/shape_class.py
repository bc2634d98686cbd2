"""Shape classes: by them launch configurations and backends are chosen; functions of the sizes of a call alone.

A class is text such as ``m8192 in2048 out8192``: words of a letter and the bound of the bucket that a size falls into.  ``m``
counts rows of tokens of every sample and branch together, ``t`` the keys of attention, ``in`` and ``out`` the features of a
product; ``d`` is the width of a row held in registers, ``k`` a head dim, ``o`` the numbers in a patch.
"""

import math
import re
from collections.abc import Iterable

ROWS = (512, 2048, 8192)
LENGTHS = (64, 256, 1024, 2048, 4096)
FEATURES = (256, 1024, 2048, 4096, 8192, 16384)
REGISTERS = (512, 1024, 2048, 4096, 8192, 16384)
HEAD_DIMS = (32, 64, 96, 128)
PATCHES = (64, 256)
FULL_PRECISION = "fp32"  # a class of its own: products without tensor cores, or with others
# sizes for which a neighbouring bucket may stand in: they change how fast a configuration is, not whether it fits
EXCHANGEABLE = ("m", "t", "in", "out")


def size_class(prefix: str, size: int, bounds: tuple[int, ...]) -> str:
    """``prefix`` and the smallest bound that is not less than ``size``; the last bound takes everything larger."""
    return f"{prefix}{next((bound for bound in bounds if size <= bound), bounds[-1])}"


def row_class(rows: int, width: int) -> str:
    """Of a kernel that holds a row of ``width`` numbers in registers, over ``rows`` rows in all."""
    return f"{size_class('d', width, REGISTERS)} {size_class('m', rows, ROWS)}"


def product_class(rows: int, inputs: int, outputs: int) -> str:
    """Of a linear layer on ``rows`` rows in all."""
    return " ".join((size_class("m", rows, ROWS), size_class("in", inputs, FEATURES), size_class("out", outputs, FEATURES)))


def attention_class(head_dim: int, keys: int) -> str:
    """Of attention to ``keys`` keys."""
    return f"{size_class('k', head_dim, HEAD_DIMS)} {size_class('t', keys, LENGTHS)}"


def heads_class(rows: int, head_dim: int) -> str:
    """Of splitting and normalising heads on ``rows`` rows of tokens in all."""
    return f"{size_class('k', head_dim, HEAD_DIMS)} {size_class('m', rows, ROWS)}"


def readout_class(rows: int, outputs: int) -> str:
    """Of a projection of ``rows`` rows of tokens to ``outputs`` numbers in a patch."""
    return f"{size_class('o', outputs, PATCHES)} {size_class('m', rows, ROWS)}"


def embed_class(rows: int, inputs: int) -> str:
    """Of the projection of ``rows`` patches of ``inputs`` numbers to tokens."""
    return f"{size_class('in', inputs, FEATURES)} {size_class('m', rows, ROWS)}"


def distance(one: str, other: str) -> float:
    """How far apart two classes are, in doublings of their sizes; infinite where one cannot stand in for the other."""
    first, second = one.split(), other.split()
    if len(first) != len(second):
        return math.inf
    total = 0.0
    for word, counterpart in zip(first, second, strict=True):
        if word == counterpart:
            continue
        (letters, size), (others, counter) = _parts(word), _parts(counterpart)
        if letters != others or letters not in EXCHANGEABLE:
            return math.inf
        total += abs(math.log2(size / counter))
    return total


def _parts(word: str) -> tuple[str, int]:
    letters, digits = re.fullmatch(r"([a-z]*)(\d*)", word).groups()
    return letters, int(digits or 0)


def nearest(wanted: str, known: Iterable[str]) -> str | None:
    """The class of ``known`` that may stand in for ``wanted`` and is the least doublings away; None where none may."""
    found = min(sorted(known), key=lambda other: distance(wanted, other), default=None)
    return None if found is None or math.isinf(distance(wanted, found)) else found
