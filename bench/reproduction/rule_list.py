"""The rules of the comparison at inference, by the names that the paper compares, each at numbers of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segue.engine.engine import Engine
from segue.engine.rules.presets import NamedRule, ParsedRule, default_rules, parse_rule

from ..quality.score_command import possible
from ..quality.scoring import Scorer
from ..quality.tuning import UNGUIDED, Searchable, Tunable, tune
from .interval_cfg import NAME as INTERVAL
from .interval_cfg import IntervalCFG

NAMES = (UNGUIDED, "cfg", INTERVAL, "slg", "ag", "exit", "sgg", "sgg-exit")
SWITCHES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SEGMENTED = "sgg"  # whose switch point is moved


@dataclass(frozen=True)
class OwnRule:
    """A rule by the name that it is compared under, and its text with its own best numbers."""

    name: str
    text: str


def comparable(engine: Engine, say: Callable[[str], None]) -> list[str]:
    """Those of :data:`NAMES` that the engine's networks allow; the others are named with the reason."""
    allowed = {INTERVAL, *possible([name for name in NAMES if name != INTERVAL], engine, say)}
    return [name for name in NAMES if name in allowed]


def searchable(name: str, engine: Engine) -> Searchable | None:
    """The search for a rule's numbers; None where the model has numbers that a search found already."""
    if name == INTERVAL:
        return IntervalCFG()
    if name == UNGUIDED or name in default_rules(engine.spec):
        return None
    return Tunable.of(name, engine.spec)


def own_rule(name: str, engine: Engine, searching: Scorer) -> OwnRule:
    """A rule at its own best numbers: the model's, or those of a search whose rows are kept.

    Raises :class:`..quality.time_limit.OutOfTimeError` where a search does not end in time.
    """
    search = searchable(name, engine)
    if search is None:
        return OwnRule(name, parse_rule(name, engine.spec).text)
    searching.echo(f"searching the numbers of {name}")
    return OwnRule(name, parse_rule(tune(searching, search), engine.spec).text)


def switched(text: str, engine: Engine, switches: Sequence[float] = SWITCHES) -> list[str]:
    """A segmented rule with its switch at every one of ``switches``, its other numbers as they are."""
    (rule,) = parse_rule(text, engine.spec).parts
    return [ParsedRule((replace(rule, options=_with_switch(rule, level)),)).text for level in switches]


def _with_switch(rule: NamedRule, level: float) -> tuple[tuple[str, Any], ...]:
    return tuple((option, level if option == "switch" else value) for option, value in rule.options)
