"""Who scores pictures of prompts: any callable of images and prompts that gives a number for each."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

PictureScorer = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]


def named_scorer(name: str) -> PictureScorer:
    """The callable ``module:function`` on Python's path; a class is made without arguments.  Raises ``ValueError``."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"a scorer is module:function, which takes images and prompts; got {name!r}")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever a foreign module raises
        raise ValueError(f"the scorer {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"the scorer {name!r} is not there: {module} has no {attribute}")
        found = getattr(found, part)
    found = found() if isinstance(found, type) else found
    if not callable(found):
        raise ValueError(f"the scorer {name!r} must be callable, got {type(found).__name__}")
    return found


def scores_of(name: str, scorer: PictureScorer, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """A number for every image; raises ``ValueError`` where the scorer gives something else."""
    given = [float(value) for value in scorer(images, prompts)]
    if len(given) != len(images):
        raise ValueError(f"the scorer {name} must give {len(images)} numbers for as many images, got {len(given)}")
    if bad := [value for value in given if not abs(value) < float("inf")]:
        raise ValueError(f"the scorer {name} gave {bad[0]}, which is no score")
    return given
