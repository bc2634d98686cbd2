"""The recipes that the bundled networks are trained by."""

from dataclasses import dataclass, field, replace

from segue.models.classifiers import ClassifierSpec
from segue.models.enhancer import EnhancerSpec
from segue.models.spec import SiTSpec

from .data.herbarium import Herbarium
from .data.leaves import SIZE
from .data.picture_pairs import HerbariumPairs
from .data.source import Source
from .data.species import NUM_SPECIES, PARENTS, SPECIES
from .objectives.label_dropout import LabelDropout
from .settings import TrainSettings
from .task import Spec


@dataclass(frozen=True)
class Recipe:
    """A network, how to train it, and on what."""

    spec: Spec
    settings: TrainSettings
    source: Source = field(default_factory=Herbarium)


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
_SETTINGS = TrainSettings(
    steps=16_000, batch_size=128, dropout=LabelDropout(0.1, 0.1), checkpoint_every=250, snapshot_every=1_000
)
# one chooses and guides, the other judges: two families, so that what flatters the one need not flatter the other
_CHOOSER = ClassifierSpec(
    name="herbarium-classifier",
    family="convolutional",
    channels=3,
    size=SIZE,
    widths=(32, 40, 56),
    depth=2,
    num_classes=NUM_SPECIES,
    parents=PARENTS,
    class_names=SPECIES,
)
_JUDGE = replace(_CHOOSER, name="herbarium-judge", family="transformer", widths=(64,), depth=4)
_ENHANCER = EnhancerSpec(name="herbarium-enhancer", channels=3, width=32, depth=4)
_ENHANCEMENT = TrainSettings(steps=4_000, batch_size=16, learning_rate=2e-3, ema=0.99, dtype="float32", checkpoint_every=250)
_CLASSIFICATION = TrainSettings(steps=12_000, batch_size=128, weight_decay=0.01, checkpoint_every=250)

# the weak sibling has a fifth of the parameters and an eighth of the steps: what it gets wrong is what autoguidance corrects;
# its run is too short for the longer average
RECIPES = {
    "herbarium": Recipe(_STRONG, _SETTINGS),
    # four times the tokens of the same network: for the minutes of a card
    "herbarium-64": Recipe(
        replace(_STRONG, name="herbarium-64", height=2 * SIZE, width=2 * SIZE), _SETTINGS, Herbarium(2 * SIZE)
    ),
    "herbarium-weak": Recipe(
        replace(_STRONG, name="herbarium-weak", dim=96, depth=6, heads=3, exits=()),
        replace(_SETTINGS, steps=2_000, ema=0.99, snapshot_every=0),
    ),
    "herbarium-classifier": Recipe(_CHOOSER, replace(_CLASSIFICATION, learning_rate=2e-3)),
    "herbarium-judge": Recipe(_JUDGE, _CLASSIFICATION),
    "herbarium-enhancer": Recipe(_ENHANCER, _ENHANCEMENT, HerbariumPairs()),
}


def get_recipe(name: str) -> Recipe:
    """A recipe by name; raises ``ValueError`` for an unknown one."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]
