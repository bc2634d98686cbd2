"""Numbers of a bundled model's rules that a search by score found: a file beside its weights, refused beside others."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from segue.models import bundled

from ..files import whole_file

MADE_FOR, RULES, COMMAND = "made_for", "rules", "command"  # of the file
_SET_ASIDE: set[str] = set()  # models whose file is not read by this process


def numbers_file(model: str) -> Path:
    """Where the numbers of a bundled model are; raises ``ValueError`` for another model."""
    if model not in bundled.BUNDLED:
        raise ValueError(f"numbers are kept for bundled models ({', '.join(bundled.BUNDLED)}), not for {model!r}")
    return _folder() / f"{model}.numbers.json"


def set_aside(model: str) -> None:
    """Go by the table of numbers for the rest of this process: a search is about to replace what it found before."""
    _SET_ASIDE.add(model)
    tuned_rules.cache_clear()


def write_numbers(model: str, rules: Mapping[str, str], command: str) -> Path:
    """Make ``rules`` the numbers of a bundled model, from now on; returns their file."""
    path, record = numbers_file(model), numbers_record(model, rules, command)
    with whole_file(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _SET_ASIDE.discard(model)
    tuned_rules.cache_clear()
    return path


@cache
def tuned_rules(model: str) -> Mapping[str, str] | None:
    """The text of every rule with its numbers, by its name; None for a model that was never searched.

    Raises ``ValueError`` for a file that is damaged, or that was made for other weights than those beside it.
    """
    path = numbers_file(model) if model in bundled.BUNDLED else None
    if path is None or model in _SET_ASIDE or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        made_for, rules = dict(record[MADE_FOR]), dict(record[RULES])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the numbers of rules: {error!r}") from error
    for file in bundled.BUNDLED[model].values():
        bundled.check_parent(made_for.get(file), path.name, _folder() / file)
    return {name: str(text) for name, text in rules.items()}


def numbers_record(model: str, rules: Mapping[str, str], command: str) -> dict:
    """What the file holds for these rules and the weights that are bundled now."""
    numbers_file(model)
    made_for = {file: bundled.digest(_folder() / file) for file in bundled.BUNDLED[model].values()}
    return {MADE_FOR: made_for, COMMAND: command, RULES: dict(rules)}


def _folder() -> Path:
    return Path(bundled.__file__).parent
