"""A rule as the text that makes it again: what a record keeps, and what a rule shows itself as."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .call_scale import CALL, CallScale
from .drawn import ClassifierReference, Draw
from .drawn_text import WITHOUT_TEXT, Named, Options, drawn_rule
from .dropped_blocks import DropBlocks
from .integers import ranges_text
from .per_sample import each
from .reuse import EXACT, Reuse
from .step_weight import PlusPlus, StepWeight
from .window import Window, segments

if TYPE_CHECKING:
    from .batch import Rules
    from .correction import Correction
    from .guidance import Guidance, Term  # which show themselves with this module
    from .normalized_attention import NormalizedAttention

PERTURBING = {  # names of rules by the perturbation of their weak branch
    "skip": "slg",
    "attention_identity": "pag",
    "attention_identity_image": "pag-image",
    "attention_shuffle": "tpg",
    "attention_skip": "stg",
    "attention_blur": "seg",
}
SEGMENTED = {"slg": "sgg", "exit": "sgg-exit"}  # by the name of the weak rule
DECIMALS = 12
NONE = "none"  # no layers
SEPARATOR = " | "  # between the rules of samples
REUSE = ("refresh", "order", "calls")  # the options that say when directions are computed


def number_text(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(float(value))


def value_text(option: str, value: Any) -> str:
    """A value as its parser reads it, exactly."""
    if isinstance(value, Window):
        bounds = (value.high,) if option == "switch" else (value.low, value.high)
        return "all" if value.kind == "all" else f"{value.kind}:{','.join(map(number_text, bounds))}"
    if option == "calls":
        return ranges_text(value)
    if isinstance(value, tuple) and option in ("layers", "protected"):
        return ",".join(map(str, value)) or NONE
    if isinstance(value, tuple):  # of one sample: a comma behind it
        return ",".join(value_text(option, each) for each in value) + "," * (len(value) == 1)
    return number_text(value) if isinstance(value, float) else str(value)


def named_text(name: str, options: Iterable[tuple[str, Any]]) -> str:
    """``NAME:OPTION=VALUE,...``"""
    text = ",".join(f"{option}={value_text(option, value)}" for option, value in options)
    return f"{name}:{text}" if text else name


def rule_text(rule: "Rules") -> str:
    """The text that :func:`.batch.parse_rules` makes the same rule of, whatever the model.

    Raises ``ValueError`` for a rule that has none: a weight is a function of sigma, or a branch none that has a name.
    """
    if isinstance(rule, tuple):
        return SEPARATOR.join(map(rule_text, rule))
    text, unnamed = _described(rule)
    if unnamed:
        raise ValueError(f"the rule has no text that makes it again: {unnamed}")
    return text


def shown_rule(rule: "Rules") -> str:
    """As :func:`rule_text`, with a description in the place of what has no text; of rules of samples their number."""
    if isinstance(rule, tuple):
        distinct = list(dict.fromkeys(_described(one)[0] for one in rule))
        return distinct[0] if len(distinct) == 1 else f"{len(distinct)} rules of {len(rule)} samples"
    return _described(rule)[0]


def _described(rule: "Guidance") -> tuple[str, str]:
    """The text, and what in it cannot be read again (empty: nothing)."""
    terms = [term for term in rule.terms if not term.branch.is_conditional]
    parts, unnamed = [_named(term) for term in terms], ""
    for term, part in zip(terms, parts, strict=True):
        if isinstance(draw := term.branch.condition, ClassifierReference) and not isinstance(draw.classifier, str):
            unnamed = f"its classifier {draw.classifier_name} is a Python callable, which no text can name"
        elif part is None:
            unnamed = f"no named rule has the branch {term.branch}" + (" on some channels" if term.channels else "")
        elif WITHOUT_TEXT in part[1].values():
            unnamed = f"the weight of {term.branch} is a function of sigma"
        elif part[0] in ("cfg", "icg") and term.weight.function is None and each(part[1]["scale"], _weight) != term.weight.base:
            unnamed = f"no scale has the weight {term.weight.base!r}"
    whole = None if unnamed else _segmented(parts)
    texts = [named_text(whole[0], whole[1].items())] if whole else []
    for term, part in zip(terms, parts, strict=True) if not whole else ():
        texts.append(f"<{term.branch}>" if part is None else named_text(part[0], part[1].items()))
    texts += map(_attention_text, rule.attention)
    texts += map(_correction_text, rule.corrections)
    return " + ".join(texts) or "none", unnamed


def _named(term: "Term") -> Named | None:
    """The name and the options of the rule that a term is; None if no name has its branch."""
    branch, weight = term.branch, term.weight
    network: Any = branch.network  # a Perturb where it has layers, a DropBlocks, or an Exit
    value = weight.base if weight.function is None else WITHOUT_TEXT
    options: Options
    if isinstance(branch.condition, Draw):
        drawn = drawn_rule(branch.condition, branch.model, None if weight.function else each(weight.base, _scale), value)
        if network is not None or drawn is None:
            return None
        name, options = drawn
        if term.channels is not None:
            options["channels"] = term.channels
    elif branch.condition != "cond" and network is None and branch.model == "main":
        scale = CALL if isinstance(weight.function, CallScale) else WITHOUT_TEXT
        name, options = "cfg", {"scale": scale if weight.function else each(weight.base, _scale)}
        if isinstance(weight.function, StepWeight) and isinstance(weight.function.function, PlusPlus):
            name, options = "cfgpp", {"scale": weight.function.function.scale}
        if branch.condition != "uncond":
            options["reference"] = branch.condition
        if term.channels is not None:
            options["channels"] = term.channels
    elif branch.condition != "cond" or term.channels is not None:
        return None
    elif branch.model != "main":
        if network is not None or not _is_plain(branch.model):
            return None
        name, options = "ag", {"weight": value, "model": branch.model}
    elif isinstance(network, DropBlocks):
        name, options = "s2", _drop_options(network, value)
    elif branch.perturbed_layers:
        name, options = PERTURBING[network.kind], {"weight": value, "layers": network.layers}
    else:
        name, options = "exit", {"weight": value, "layer": network.layer}
    if weight.delta:
        options["delta"] = weight.delta
    if term.window != Window():
        options["window"] = term.window
    if term.stop is not None:
        options["stop"] = term.stop
    return name, options | _reuse_options(term.reuse)


def _drop_options(network: DropBlocks, weight: Any) -> Options:
    """The options that make the term of a network again; share and seed always, whatever their defaults become."""
    options: Options = {"weight": weight, "share": network.share, "seed": network.seed}
    return options | ({} if network.protected is None else {"protected": network.protected})


def _reuse_options(reuse: Reuse) -> Options:
    """The options that make a reuse again; none where it is the default."""
    return {name: getattr(reuse, name) for name in REUSE if getattr(reuse, name) != getattr(EXACT, name)}


def _weight(scale: float) -> float:
    return scale - 1


def _scale(base: float) -> float:
    """The scale of a weight ``base``: of those that give it, one with few digits if there is one."""
    short = round(base + 1, DECIMALS)
    return short if short - 1 == base else base + 1


def _is_plain(name: str) -> bool:
    """Whether a name survives in the text of a rule."""
    return bool(name) and name == name.strip() and not set(name) & set(",=+:|")


def _segmented(parts: Sequence[Named | None]) -> Named | None:
    """Two rules, one before and one after a switch, as the one that they are together."""
    if len(parts) != 2 or parts[0] is None or parts[1] is None:
        return None
    (strong, first), (weak, second) = (parts[0][0], dict(parts[0][1])), (parts[1][0], dict(parts[1][1]))
    windows = first.pop("window", None), second.pop("window", None)
    reuse, other = ({name: part.pop(name) for name in REUSE if name in part} for part in (first, second))
    plain = strong == "cfg" and weak in SEGMENTED and reuse == other and set(first) == {"scale"} and "delta" not in second
    if not plain or windows[0] is None:
        return None
    try:
        before, after = segments(windows[0])
    except ValueError:
        return None
    if windows != (before, after) or before.is_empty or after.is_empty:
        return None
    switch = before.low if before.kind == "sigma" else before
    return SEGMENTED[weak], first | second | {"switch": switch} | reuse


def _attention_text(part: "NormalizedAttention") -> str:
    values = {name: value for name, value in vars(part).items() if value != Window()}
    return named_text(part.name, values.items())


def _correction_text(correction: "Correction") -> str:
    values = {name: value for name, value in vars(correction).items() if name != "zero_steps" or value}
    return named_text(correction.name, values.items())
