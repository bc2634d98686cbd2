"""Which network of a checkpoint is meant: averaged (EMA) weights before raw ones, under whatever names they are kept.

Training code keeps its networks in entries (``model``, ``state_dict_ema``), under prefixes of one dictionary (``model.``,
``ema_model.module.``), or under both.  A network is found by the names of its own tensors, wherever they begin; what stands
before them tells what it is.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

# a tensor that every network of a known layout has: official and our own, published SD3, diffusers
MARKS = (
    "x_embedder.proj.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "joint_blocks.0.x_block.adaLN_modulation.1.weight",
    "pos_embed.proj.weight",
    "transformer_blocks.0.norm1.linear.weight",
)
# words in the names of entries and prefixes: EMA is kept as ema, model_ema, ema_model, ModelEMA, state_dict_ema, params_ema,
# ema_0.9999, swa_model, averaged_model, shadow, ...; beside it may stand non_ema, online_model, current_model_state
AVERAGED_WORDS = frozenset({"ema", "average", "averaged", "avg", "swa", "polyak", "shadow"})
RAW_WORDS = frozenset({"non", "no", "raw", "online", "current", "live"})
WEAK_WORDS = frozenset({"weak"})  # the smaller network trained alongside, as weak_model and weak_ema
AVERAGE_PREFIX, AVERAGE_COUNT = "module.", "n_averaged"  # of torch's AveragedModel: its network, and beside it a counter
LIGHTNING_AVERAGE = ("averaging_state", "state_dict")  # where the first is, Lightning has put the average into the second
SETTINGS = ("args", "hyper_parameters")  # training arguments; Lightning's name for them
STEPS = "steps"


@dataclass(frozen=True, eq=False)
class Contained:
    """One network in a checkpoint: its tensors by their own names, and the entries and prefix that they stand under."""

    place: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    averaged: bool

    @property
    def label(self) -> str:
        return ".".join(self.place)

    @property
    def weak(self) -> bool:
        return any(_words(part) & WEAK_WORDS for part in self.place)

    def holds(self, name: str) -> bool:
        """Whether a tensor of that full name stands under the entries and the prefix of the network."""
        return name.startswith("".join(f"{part}." for part in self.place))


@dataclass(frozen=True)
class Choice:
    """The network that is meant, the weak one trained beside it, and why everything else is not used."""

    main: Contained
    weak: Contained | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)


def choose_network(content: Mapping[str, Any], path: Path) -> Choice:
    """The network of a checkpoint's content.

    Raises ``ValueError`` in one sentence where several could be meant, or where averaged weights stand beside raw ones in a
    form that cannot be read.
    """
    found = list(_networks(content))
    main = _pick([network for network in found if not network.weak], path)
    weak = _pick([network for network in found if network.weak], path)
    if main is None:
        main, weak = weak, None
    if main is None:
        return Choice(Contained((), _all_tensors(content), False))
    chosen = [network for network in (main, weak) if network is not None]
    for network in chosen:
        if not network.averaged:
            _refuse_hidden_average(content, found, network, path)
    return Choice(main, weak, _unused(content, found, chosen))


def training_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """The training arguments that a checkpoint keeps, and its number of steps."""
    settings: dict[str, Any] = {}
    for name in SETTINGS:
        given = content.get(name)
        settings |= vars(given) if isinstance(given, argparse.Namespace) else given if isinstance(given, Mapping) else {}
    return settings | ({STEPS: content[STEPS]} if STEPS in content and not isinstance(content[STEPS], Tensor) else {})


# --- finding ---------------------------------------------------------------------------------------------------------


def _networks(content: Mapping[Any, Any], place: tuple[str, ...] = ()) -> Iterator[Contained]:
    """The networks in nested dictionaries; of prefixes that contain one another, each tensor belongs to the longest."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    prefixes = {prefix for key in tensors if (prefix := _prefix(key)) is not None}
    for prefix in sorted(prefixes, key=len, reverse=True):
        own = {key: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
        where = (*place, *filter(None, prefix.split(".")))
        counter = f"{prefix.removesuffix(AVERAGE_PREFIX)}{AVERAGE_COUNT}"
        averaged = is_average(where) or (prefix.endswith(AVERAGE_PREFIX) and counter in content)
        yield Contained(where, {key.removeprefix(prefix): value for key, value in own.items()}, averaged)
    marker, average = LIGHTNING_AVERAGE
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            for network in _networks(value, (*place, key)):
                stated = key == average and marker in content
                yield Contained(network.place, network.tensors, network.averaged or stated)


def _prefix(key: str) -> str | None:
    """What stands before the tensor names of a network, if this is one of its marks."""
    for mark in MARKS:
        if key == mark or key.endswith(f".{mark}"):
            return key[: -len(mark)]
    return None


def _words(part: str) -> set[str]:
    """The words of a name in lower case, whether they are set apart by signs, digits or capitals."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)}


def is_average(place: tuple[str, ...]) -> bool:
    """Whether weights under these names are an average; the innermost name that says anything decides."""
    for words in map(_words, reversed(place)):
        if words & (RAW_WORDS | AVERAGED_WORDS):
            return not words & RAW_WORDS and "exp" not in words  # exp_avg is a moment of Adam
    return False


# --- choosing --------------------------------------------------------------------------------------------------------


def _pick(networks: list[Contained], path: Path) -> Contained | None:
    candidates = [network for network in networks if network.averaged] or networks
    if len(candidates) > 1:
        names = ", ".join(sorted(repr(network.label) for network in candidates))
        raise ValueError(f"{path} holds several networks ({names}); save the one that is meant in a file of its own")
    return candidates[0] if candidates else None


def _refuse_hidden_average(content: Mapping[str, Any], found: list[Contained], chosen: Contained, path: Path) -> None:
    """Raise ``ValueError`` where an average stands beside raw weights without the tensor names of a network."""
    for place in _groups(content):
        group = Contained(place, {}, is_average(place))
        if not group.averaged or group.weak != chosen.weak or any(network.place[: len(place)] == place for network in found):
            continue
        raise ValueError(
            f"{path} keeps averaged weights under {group.label!r}, without the tensor names of the network under "
            f"{chosen.label!r}; save the averaged network by its tensor names, in a file of its own"
        )


def _groups(content: Mapping[Any, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places, at most two entries deep, under which tensors other than counters lie."""
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            if value.dim() and "." in key:
                yield (*place, key.split(".")[0])
        elif _holds_weights(value):
            yield (*place, key)
            if isinstance(value, Mapping) and not place:
                yield from _groups(value, (key,))


def _holds_weights(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(_holds_weights(part) for part in parts)


def _unused(content: Mapping[str, Any], found: list[Contained], chosen: list[Contained]) -> dict[str, str]:
    """Entries, networks and single tensors that are not needed, with the reason."""
    main = chosen[0]
    beside = f"not needed beside {main.label!r}" if main.place else "not needed for the network"
    ignored = {network.label: beside for network in found if network not in chosen}
    for key, value in content.items():
        if key in (*SETTINGS, STEPS):
            continue
        outside = [name for name in _all_tensors({key: value}) if not any(network.holds(name) for network in found)]
        if isinstance(value, Tensor) or any(network.place[:1] == (key,) for network in found):
            ignored |= dict.fromkeys(outside, f"outside the network {main.label!r}")
        else:
            ignored[str(key)] = beside
    return ignored


def _all_tensors(content: Mapping[Any, Any], place: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Every tensor by its place, for a message about what a file holds."""
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[".".join((*place, str(key)))] = value
        elif isinstance(value, Mapping):
            tensors |= _all_tensors(value, (*place, str(key)))
    return tensors
