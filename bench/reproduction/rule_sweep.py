"""The rules that are swept over their strength, and those that are drawn at one, as texts with all their numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segue.engine.engine import Engine
from segue.engine.rules.presets import NamedRule, ParsedRule, parse_rule
from segue.engine.rules.rule_names import NAMES

from ..quality.score_command import possible
from ..quality.tuning import OFF, UNGUIDED

SWEPT = ("cfg", "slg", "pag", "stg", "seg", "exit", "ag", "sgg", "sgg-exit", "gfcg")
FACTORS = (1.0, 0.5, 2.0)  # of the numbers that a rule has on the model, in the order in which they are drawn
# At one strength: the other rules, and corrections of the model's classifier-free guidance by published numbers where these
# are of no model.
ALONE = (
    *(name for name, rule in NAMES.items() if not rule.correction and name not in (UNGUIDED, "pag-image", *SWEPT)),
    "cfg + apg:momentum=-0.5,radius=15,eta=0",
    "cfg + fdg:low=0.5",
    "cfg + rescale:phi=0.7",
    "cfg + higs",
    "cfg + refine:beta=0.1",
    "cfg + cfg:scale=1.2,reference=parent + perp-neg",
    "none + epsilon:factor=1.005",
    "none + tsr",
    "cfg:scale=1.053 + power-law",  # whose scale goes with the norm of the direction: guessed, as that of beta is
    "cfg:scale=35 + beta",
    *(
        f"cfg + {name}"
        for name, rule in NAMES.items()
        if rule.correction and not rule.needed and name not in ("perp-neg", "tsr", "power-law", "beta")
    ),
)


@dataclass(frozen=True)
class Swept:
    """A rule by its name, and its texts by the factor that its numbers are multiplied with."""

    name: str
    texts: dict[float, str]

    @property
    def own(self) -> str:
        """The text at the numbers that the model has for it."""
        return self.texts[1.0]


def all_names(engine: Engine, say: Callable[[str], None]) -> list[str]:
    """All rules that the engine's networks allow, the unguided one first; of the others the reason is said."""
    return possible([UNGUIDED, *SWEPT, *ALONE], engine, say)


def swept_rules(engine: Engine, names: Sequence[str], factors: Sequence[float]) -> list[Swept]:
    """Each of ``names``, which are of :data:`SWEPT`, or texts of rules that are drawn as they are, once.

    Raises ``ValueError`` for one that the engine's networks do not allow.
    """
    found: list[Swept] = []
    known: set[str] = set()
    for name in dict.fromkeys(names):
        rule = parse_rule(name, engine.spec)
        moved = dict.fromkeys([1.0, *factors]) if name in SWEPT else (1.0,)
        texts = {factor: scaled(rule, factor) for factor in moved}
        if texts[1.0] not in known:
            for text in texts.values():
                engine.plan(parse_rule(text, engine.spec).guidance)
            found.append(Swept(name, texts))
            known |= set(texts.values())
    return found


def scaled(rule: ParsedRule, factor: float) -> str:
    """The text of a rule whose scales and weights are ``factor`` times as far from where they do nothing."""
    if factor == 1.0:
        return rule.text
    return ParsedRule(tuple(replace(part, options=_options(part, factor)) for part in rule.parts)).text


def _options(part: NamedRule, factor: float) -> tuple[tuple[str, Any], ...]:
    def moved(name: str, value: Any) -> Any:
        off = OFF.get(name)
        return value if off is None else round(off + factor * (value - off), 4)

    return tuple((name, moved(name, value)) for name, value in part.options)
