"""What a network in training draws: a sheet of pictures of fixed classes from fixed noise, by the averaged weights."""

from typing import Any

from PIL import Image

from segue.engine.cli.sheets import picture_grid
from segue.engine.engine import Engine
from segue.models.sit import SiT
from segue.models.spec import SiTSpec

from .task import Spec

PICTURES, STEPS, SEED = 16, 28, 0


def check_previews(spec: Spec, every: int, vae: Any = None) -> None:
    """Raise ``ValueError`` for a network that draws nothing, latents without a VAE that decodes them, a VAE for nothing."""
    if not every:
        if vae is not None:
            raise ValueError(f"the VAE {vae} is for previews, and preview_every is 0")
        return
    if not isinstance(spec, SiTSpec):
        raise ValueError(f"{spec.name} draws no pictures: leave preview_every at 0")
    if vae is None and spec.channels not in (1, 3):
        raise ValueError(f"{spec.name} draws latents of {spec.channels} channels: previews need the VAE that decodes them")


def preview(network: SiT, vae: Any = None) -> Image.Image:
    """A sheet of at most 16 classes, spread over all; the same noise at every step of a run."""
    spec = network.spec
    count = min(PICTURES, spec.num_classes)
    labels = [index * spec.num_classes // count for index in range(count)]
    device = next(network.parameters()).device
    training = network.training
    engine = Engine(network.eval(), None, device, "float32", graphs=False, vae=vae)
    try:
        run = engine.sample(labels, steps=STEPS, seeds=SEED)
    finally:
        network.train(training)
    names = [spec.class_names[label] if spec.class_names else str(label) for label in labels]
    return picture_grid(run.images, names)
