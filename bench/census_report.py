"""The report of ``segue bench census``: a census as tables for a reader, or as JSON."""

import json as json_module
from pathlib import Path

from segue.engine.device import resolve_dtype

from .cards import find_card
from .cases import BenchModel
from .census import CUDA, take_census
from .census_json import census_dict, read_census


def print_census(
    model: str, card: str, ceilings: Path | None, rule: str, batch: int, dtype: str, kernels: str, steps: int,
    against: Path | None, beside: Path | None, top: int, json: bool,
) -> None:  # fmt: skip
    """Take a census and print it.  Raises ``ValueError`` for bad options before any work."""
    found, precision = find_card(card, ceilings), resolve_dtype(dtype, CUDA)
    before = None if against is None else read_census(against)
    census = take_census(BenchModel.parse(model), found, rule, batch, precision, kernels, steps)
    print(json_module.dumps(census_dict(census)))
