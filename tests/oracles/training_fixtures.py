"""Networks and settings small enough to train in a test."""

from segue.models.classifiers import ClassifierSpec
from segue.models.spec import SiTSpec
from segue.training.data.species import NUM_SPECIES, PARENTS
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.settings import TrainSettings

TINY_SPEC = SiTSpec(
    name="tiny-herbarium",
    channels=3,
    height=32,
    width=32,
    patch=8,
    dim=32,
    depth=3,
    heads=2,
    prediction="velocity",
    time="sigma",
    exits=(1,),
    num_classes=NUM_SPECIES,
    parents=PARENTS,
)

TINY_CLASSIFIER = ClassifierSpec(
    name="tiny-classifier",
    family="convolutional",
    channels=3,
    size=32,
    widths=(8, 16),
    depth=1,
    num_classes=NUM_SPECIES,
    parents=PARENTS,
)


def tiny_settings(**changes) -> TrainSettings:
    """fp32, batches of 3, both label dropouts."""
    settings = {"batch_size": 3, "dtype": "float32", "warmup": 2, "dropout": LabelDropout(0.2, 0.2), "learning_rate": 3e-3}
    return TrainSettings(**(settings | changes))
