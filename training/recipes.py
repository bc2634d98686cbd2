"""The recipes that the bundled networks are trained by."""

from dataclasses import dataclass, replace

from segue.models.spec import SiTSpec

from .leaves import SIZE
from .objective import LabelDropout
from .settings import TrainSettings
from .species import NUM_SPECIES, PARENTS, SPECIES


@dataclass(frozen=True)
class Recipe:
    """A network and how to train it."""

    spec: SiTSpec
    settings: TrainSettings


_STRONG = SiTSpec(
    name="herbarium",
    channels=3,
    height=SIZE,
    width=SIZE,
    patch=4,
    dim=160,
    depth=12,
    heads=5,
    prediction="velocity",
    time="sigma",
    exits=(4,),
    num_classes=NUM_SPECIES,
    parents=PARENTS,
    class_names=SPECIES,
)
_SETTINGS = TrainSettings(steps=100_000, minutes=105, dropout=LabelDropout(0.1, 0.1), checkpoint_every=250)

# the weak sibling has a fifth of the parameters and an eighth of the time: what it gets wrong is what autoguidance corrects;
# its run is too short for the longer average
RECIPES = {
    "herbarium": Recipe(_STRONG, _SETTINGS),
    "herbarium-weak": Recipe(
        replace(_STRONG, name="herbarium-weak", dim=96, depth=6, heads=3, exits=()), replace(_SETTINGS, minutes=13, ema=0.99)
    ),
}


def get_recipe(name: str) -> Recipe:
    """A recipe by name; raises ``ValueError`` for an unknown one."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]
