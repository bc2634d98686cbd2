"""Each model's default numbers for guidance rules, and the sums that a rule's name alone stands for."""

from typing import Any

from segue.models.bundled import CLASSIFIERS
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.sd3_sizes import SD3_SIZES, published_size
from segue.models.sizes import FAMILIES
from segue.models.spec import ModelSpec, SiTSpec

from .window import Window

# Default numbers by model name and rule, of models that were never searched (see tuned_numbers).  The numbers of sgg on SD3 are
# the published recipe (arXiv 2603.20584), 14 + 14 of 28 steps.
_SD3: dict[str, dict[str, Any]] = {
    "cfg": {"scale": 4.5},
    "nag": {"scale": 5.0},  # of its authors' examples
    "slg": {"weight": 2.8, "layers": (7, 8, 9)},
    "s2": {"weight": 0.25},  # our own: small beside CFG; the published number could not be read
    "sgg": {"scale": 4.5, "weight": 3.0, "layers": (7, 8, 9), "switch": Window.fraction(0.0, 0.5)},
}
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    # of the official samplers, which guide three of the four channels: DiT's own default, and the scale of SiT's best scores
    "DiT": {"cfg": {"scale": 4.0, "channels": 3}},
    "SiT": {"cfg": {"scale": 1.5, "channels": 3}},
    "sd3-medium": _SD3,
    "sd3.5-medium": _SD3,
    "sd3.5-large": {
        rule: {option: value for option, value in numbers.items() if option != "layers"} for rule, numbers in _SD3.items()
    },
}
IMAGENET = 1000, 4  # classes, and channels of latents, of the published DiT and SiT
WITHHELD = {  # why a model has no default for an option that its relatives have one for
    ("sd3.5-large", "layers"): "the blocks 7, 8 and 9 that suit SD3-medium and SD3.5-medium damage its pictures",
}

# A name alone that stands for a sum on some models: the rules of the sum, with the options that differ from the defaults.
# slg: as Stability ships it, on top of classifier-free guidance (the defaults of diffusers' StableDiffusion3Pipeline, which
# acts at steps i from 0 with 0.01 n < i < 0.2 n; at n = 100, 200, ... this window begins one step earlier).
# s2: as its paper has it, on top of classifier-free guidance.
_SUMS_OF_SD3: dict[str, dict[str, dict[str, Any]]] = {
    "slg": {"cfg": {}, "slg": {"window": Window.fraction(0.01, 0.2)}},
    "s2": {"cfg": {}, "s2": {}},
}
RECIPES: dict[str, dict[str, dict[str, dict[str, Any]]]] = dict.fromkeys(SD3_SIZES, _SUMS_OF_SD3)


# Usual numbers, for a model that has none of its own: of prompts as SD3's and diffusers' own, of classes mild ones, about what
# scores chose for the herbarium or less.
_USUAL_OF_PROMPTS = {"scale": 4.5, "weight": 2.8, "switch": Window.fraction(0.0, 0.5)}
_USUAL_OF_CLASSES = {"scale": 1.5, "weight": 0.2, "switch": 0.5}
SCALE_OF_A_SHARE = 5.0  # of CFG++, in the mean of 28 even steps
HISTORY_WEIGHT = 1.0  # of HiGS: a weight of another kind than that of a weak branch
GUIDES = "-classifier"  # of a bundled model's two classifiers the one that chooses; the other judges
LAYERS_PER_SKIPPED = 8  # one layer in so many is perturbed: 7, 8 and 9 of the 24 of SD3-medium


def usual_numbers(spec: ModelSpec, rule: str) -> dict[str, Any]:
    """Numbers for the options of a rule on a model without numbers of its own: the layers are the middle ones of its depth.

    An early-exit rule has a layer where the model has a head.
    """
    usual: dict[str, Any] = dict(_USUAL_OF_PROMPTS if isinstance(spec, MMDiTSpec) else _USUAL_OF_CLASSES)
    own = {"cfgpp": {"scale": usual["scale"] / SCALE_OF_A_SHARE}, "higs": {"weight": HISTORY_WEIGHT}}
    count = max(1, round(spec.depth / LAYERS_PER_SKIPPED))
    first = (spec.depth - count) // 2
    usual["layers"] = tuple(range(first, first + count))
    guides = [name for name, model in CLASSIFIERS.items() if model == spec.name and name.endswith(GUIDES)]
    usual |= {"classifier": guides[0]} if guides else {}
    exits = getattr(spec, "exits", ())
    return usual | ({"layer": exits[0]} if exits else {}) | own.get(rule, {})


def preset_name(model: str | ModelSpec) -> str:
    """The name under which a model's defaults are kept.

    An SD3 is known by its size alone, since its name is that of anybody's folder; one of another size has no defaults.  So is
    a DiT or a SiT of ImageNet, by what it predicts.
    """
    if isinstance(model, SiTSpec) and (model.num_classes, model.channels) == IMAGENET:
        titles = [
            family.title for family in FAMILIES.values() if (family.prediction, family.time) == (model.prediction, model.time)
        ]
        if titles and titles[0] in DEFAULTS:
            return titles[0]
    if isinstance(model, MMDiTSpec):
        return published_size(model) or f"{model.name}, {model.depth} blocks of width {model.dim}"
    return model.name if isinstance(model, ModelSpec) else model
