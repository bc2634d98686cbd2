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
_CHOICE = ("form", "gain", "lag", "source", "every", "interval", "temperature", "model")
_CLASSES = ("classes", "template")
NAMES = {
    "none": Named("Unguided"),
    "cfg": Named("Classifier-free guidance", ("scale",), (*_TERM, "reference", "channels", "stop")),
    "slg": Named("Skip-layer guidance", _WEAK, _TERM),
    "cfgpp": Named("CFG++", ("scale",), ("window", *_REUSE, "reference", "stop")),
    "tpg": Named("Shuffled-attention guidance", _WEAK, _TERM),
    "pag": Named("Perturbed-attention guidance", _WEAK, _TERM),
    "pag-image": Named("Perturbed-attention guidance, text kept", _WEAK, _TERM),
    "stg": Named("Skipped-attention guidance", _WEAK, _TERM),
    "seg": Named("Blurred-attention guidance", _WEAK, _TERM),
    "s2": Named("Stochastic self-guidance", ("weight",), ("share", "seed", "protected", *_TERM)),
    "exit": Named("Early-exit guidance", ("weight", "layer"), _TERM),
    "ag": Named("Autoguidance", ("weight",), (*_TERM, "model")),
    "nag": Named("Normalized attention guidance", ("scale",), ("tau", "alpha", "window")),
    "gfcg": Named("Gradient-free classifier guidance", ("weight", "classifier"), (*_CHOICE, *_CLASSES, "delta", "window")),
    "icg": Named("Independent condition guidance", ("scale",), (*_CLASSES, "delta", "window", "channels")),
    "sgg": Named("Segmented guidance", ("scale", "weight", "layers", "switch"), _REUSE),
    "sgg-exit": Named("Segmented guidance, early exit", ("scale", "weight", "layer", "switch"), _REUSE),
    "zero-star": Named("optimized scale", (), ("zero_steps",), correction=True),
    "apg": Named("adaptive projection", ("momentum", "radius", "eta"), correction=True),
    "tcfg": Named("tangential damping", correction=True),
    "mambo": Named("magnitude damping", (), ("alpha",), correction=True),
    "power-law": Named("power law", (), ("alpha",), correction=True),
    "beta": Named("normalised, by a beta density", (), ("a", "b", "gamma"), correction=True),
    "adg": Named("angle domain", (), ("max_angle",), correction=True),
    "perp-neg": Named("perpendicular negatives", correction=True),
    "fdg": Named("frequencies decoupled", ("low",), ("levels",), correction=True),
    "fresca": Named("frequencies scaled", (), ("low", "high", "cutoff"), correction=True),
    "fbg": Named("feedback", (), ("pi", "start", "peak", "most"), correction=True),
    "rescale": Named("rescaled deviation", ("phi",), correction=True),
    "renorm": Named("capped norm", (), ("rho",), correction=True),
    "energy": Named("preserved energy", (), ("phi",), correction=True),
    "tsr": Named("terminal scaling", (), ("k", "width"), correction=True),
    "epsilon": Named("epsilon scaling", ("factor",), correction=True),
    "higs": Named("history guidance", ("weight",), ("alpha", "low", "high", "eta", "cutoff"), correction=True),
    "refine": Named("spectral refinement", ("beta",), ("cutoff", "high"), correction=True),
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
