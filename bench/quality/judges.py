"""Judges by name: classifiers of the herbarium, features without weights, networks trained on ImageNet, and any callable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.bundled import CLASSIFIERS
from segue.models.classifiers import load_classifier
from segue.models.fingerprint import fingerprint

from ..correctness import full_single
from ..named_callable import named_callable
from ..scores.extractors import Extractor, RandomConvolutions, colour_statistics
from ..scores.imagenet_extractors import efficientnet_lite0, timm_extractor, torchvision_extractor
from ..scores.judge import Judge

OTHERS: dict[str, Callable[[], Extractor]] = {
    "colours": lambda: colour_statistics,
    "textures": RandomConvolutions,
    "efficientnet-lite0": efficientnet_lite0,
}
ADAPTERS: dict[str, Callable[[str], Extractor]] = {"torchvision": torchvision_extractor, "timm": timm_extractor}
ACCEPTED = (
    f"{', '.join((*CLASSIFIERS, *OTHERS))}, a classifier's .safetensors, timm/NAME, torchvision/NAME or package.module:callable"
)
FILE = ".safetensors"
DIGITS = 8  # of the fingerprint of a judge's weights, in its name


def named_judge(name: str, device: torch.device) -> Judge:
    """The judge of that name with its networks on ``device``; raises ``ValueError`` for one that there is not.

    A callable takes pictures [B, C, H, W] in [-1, 1]; one with a method ``features`` is a classifier and gives logits itself.
    A class is made without arguments.  The name in rows carries the weights: ``herbarium-judge@1f0c2a9b``.
    """
    found = _found(name)
    if Path(name).suffix == FILE:
        name = found.spec.name  # whatever file it is in
    weights = ""
    if isinstance(found, nn.Module):
        weights = f"@{fingerprint({'judge': found})[:DIGITS]}" if list(found.state_dict()) else ""
        found = found.to(device).eval().requires_grad_(False)
    features = getattr(found, "features", None)
    if callable(features):
        return Judge(name + weights, _on(device, features), _on(device, found))
    return Judge(name + weights, _on(device, found))


def short_name(judge: str) -> str:
    """The name of a judge for people, without the fingerprint of its weights."""
    return judge.partition("@")[0]


def check_judge(judge: Judge, size: tuple[int, int, int]) -> int | None:
    """The number of classes that a judge tells apart, if it classifies.

    Raises ``ValueError`` unless it takes pictures of ``size`` (C, H, W): it is asked about two grey ones, before any work.
    """
    grey = torch.zeros(2, *size)
    try:
        with torch.no_grad():
            features, logits = judge.features(grey), judge.logits(grey) if judge.logits else None
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{judge.name} does not take pictures of {'x'.join(map(str, size))}: {reason[0]}") from error
    for what, found in (("features", features), *((("logits", logits),) if judge.logits else ())):
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 2:
            shape = f"shape {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(f"{judge.name} must give {what} [2, F] of two pictures, got {shape}")
    return None if logits is None else logits.shape[1]


def _found(name: str) -> Any:
    if name in CLASSIFIERS:
        return load_classifier(name)
    if Path(name).suffix == FILE:
        return load_classifier(Path(name))
    if name in OTHERS:
        return OTHERS[name]()
    library, slash, network = name.partition("/")
    if slash and library in ADAPTERS and network:
        return ADAPTERS[library](network)
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise ValueError(f"there is no judge {name!r}; accepted: {ACCEPTED}")
    return named_callable(name, "judge")


def _on(device: torch.device, extractor: Extractor) -> Extractor:
    """The extractor for pictures that lie anywhere, in full single precision, which is the same on every device."""

    def moved(pictures: Tensor) -> Tensor:
        with full_single():
            return extractor(pictures.to(device))

    return moved
