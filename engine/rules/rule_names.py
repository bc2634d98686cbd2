"""The rules that have names, with the options of each: what texts of rules may say; for a quick ``--help``, without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """A title for people, the options that a rule needs and those that it may have; a correction is added to another rule."""

    title: str
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    correction: bool = False


_REUSE = ("refresh", "order", "calls")
_TERM = ("delta", "window", *_REUSE)
_WEAK = ("weight", "layers")
NAMES = {
    "none": Named("Unguided"),
    "cfg": Named("Classifier-free guidance", ("scale",), (*_TERM, "reference", "channels", "stop")),
    "slg": Named("Skip-layer guidance", _WEAK, _TERM),
    "pag": Named("Perturbed-attention guidance", _WEAK, _TERM),
    "pag-image": Named("Perturbed-attention guidance, text kept", _WEAK, _TERM),
    "stg": Named("Skipped-attention guidance", _WEAK, _TERM),
    "seg": Named("Blurred-attention guidance", _WEAK, _TERM),
    "exit": Named("Early-exit guidance", ("weight", "layer"), _TERM),
    "ag": Named("Autoguidance", ("weight",), (*_TERM, "model")),
    "sgg": Named("Segmented guidance", ("scale", "weight", "layers", "switch"), _REUSE),
    "sgg-exit": Named("Segmented guidance, early exit", ("scale", "weight", "layer", "switch"), _REUSE),
    "rescale": Named("rescaled deviation", ("phi",), correction=True),
    "zero-star": Named("optimized scale", (), ("zero_steps",), correction=True),
    "apg": Named("adaptive projection", ("momentum", "radius", "eta"), correction=True),
}


def rules_text(corrections: bool = False) -> str:
    """The rules, or the corrections, with their options, as ``cfg (scale; delta, window)``; those alike share brackets."""
    alike: dict[tuple, list[str]] = {}
    for name, rule in NAMES.items():
        if rule.correction is corrections:
            alike.setdefault((rule.needed, rule.optional), []).append(name)
    texts = []
    for (needed, optional), names in alike.items():
        options = "; ".join(", ".join(group) for group in (needed, optional) if group)
        texts.append(", ".join(names) + (f" ({options})" if options else ""))
    return "; ".join(texts)
