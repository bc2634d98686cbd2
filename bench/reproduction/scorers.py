"""Who scores pictures of prompts: any callable of images and prompts that gives a number for each."""

from collections.abc import Callable, Sequence

from PIL import Image

PictureScorer = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]


def scores_of(name: str, scorer: PictureScorer, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """A number for every image; raises ``ValueError`` where the scorer gives something else."""
    given = [float(value) for value in scorer(images, prompts)]
    if len(given) != len(images):
        raise ValueError(f"the scorer {name} must give {len(images)} numbers for as many images, got {len(given)}")
    if bad := [value for value in given if not abs(value) < float("inf")]:
        raise ValueError(f"the scorer {name} gave {bad[0]}, which is no score")
    return given
