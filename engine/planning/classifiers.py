"""Classifiers that guide: by name or any callable, what they cost, and whether they tell a model's classes apart.

A classifier takes clean estimates [B, C, H, W] fp32 in the data range of the sampled network and gives logits [B, classes].
One that is named reads pictures in [-1, 1]; on latents it stands behind the decoder of the model's VAE.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from segue.models.bundled import CLASSIFIERS
from segue.models.classifiers import Classifier, load_classifier
from segue.models.spec import ModelSpec

from ..rules.drawn import ClassifierReference

Logits = Callable[[Tensor], Tensor]
PICTURE_CHANNELS = 3
FILE = ".safetensors"
ACCEPTED = f"{', '.join(CLASSIFIERS)}, a classifier's {FILE}, timm:NAME, torchvision:NAME, or in Python any callable"


class ImageNetClassifier(nn.Module):
    """``network`` on pictures resized to ``size`` and normalised by ``mean`` and ``deviation`` (of values in [0, 1])."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, size: int, mean: Sequence[float], deviation: Sequence[float]):
        super().__init__()
        self.network, self.size = network.eval().requires_grad_(False), size
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(tuple(deviation)).view(1, -1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> logits [B, classes]"""
        scaled = (pictures + 1) / 2
        if scaled.shape[2:] != (self.size, self.size):
            scaled = nn.functional.interpolate(scaled, (self.size, self.size), mode="bicubic", antialias=True)
        return self.network((scaled.clamp(0, 1) - self.mean) / self.deviation)


class BehindDecoder(nn.Module):
    """A classifier of pictures on latents: ``decode`` gives pictures in [-1, 1] of latents [B, C, H, W]."""

    def __init__(self, decode: Callable[[Tensor], Tensor], classifier: Logits):
        super().__init__()
        self.decode, self.classifier = decode, classifier

    def forward(self, latents: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]"""
        return self.classifier(self.decode(latents).float())


@lru_cache(maxsize=4)
def named_classifier(name: str) -> nn.Module:
    """A classifier of pictures by name, in fp32 on the CPU, without gradients.

    Raises ``ValueError`` or ``FileNotFoundError`` with one sentence for one that there is not, or cannot be imported.
    """
    library, separator, model = name.partition(":")
    if separator and library in _LIBRARIES:
        return _LIBRARIES[library](model)
    if name in CLASSIFIERS or Path(name).suffix == FILE:
        return load_classifier(name)
    raise ValueError(f"unknown classifier {name!r}; accepted: {ACCEPTED}")


def _timm(name: str) -> nn.Module:
    timm = _imported("timm")
    network = timm.create_model(name, pretrained=True)
    config = timm.data.resolve_model_data_config(network)
    return ImageNetClassifier(network, config["input_size"][-1], config["mean"], config["std"])


def _torchvision(name: str) -> nn.Module:
    models = _imported("torchvision.models")
    choice = models.get_model_weights(name)["DEFAULT"]
    transform = choice.transforms()
    return ImageNetClassifier(models.get_model(name, weights=choice), transform.crop_size[0], transform.mean, transform.std)


_LIBRARIES = {"timm": _timm, "torchvision": _torchvision}


def _imported(name: str) -> ModuleType:
    """A module that may be missing, or built for another torch, which it says by any error."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the classifier needs {name.split('.')[0]}, which cannot be imported here: {reason[0]}") from error


def needs_decoder(classifier: str | Logits, spec: ModelSpec) -> bool:
    """Whether a classifier reads pictures where ``spec`` makes latents; a callable reads what the network makes."""
    return isinstance(classifier, str) and spec.channels != PICTURE_CHANNELS


def resolved_classifier(
    classifier: str | Logits, spec: ModelSpec, device: torch.device, decode: Callable[[Tensor], Tensor] | None = None
) -> Logits:
    """What a step calls with estimates on ``device``.

    Raises ``ValueError`` for a named one on latents without a VAE (``decode``).
    """
    if not isinstance(classifier, str):
        return classifier
    network = _placed(classifier, device)
    if not needs_decoder(classifier, spec):
        return network
    if decode is None:
        raise ValueError(
            f"{classifier} reads pictures and {spec.name} makes latents of {spec.channels} channels: give the engine a VAE, or "
            "as classifier a callable that reads latents"
        )
    return BehindDecoder(decode, network)


@lru_cache(maxsize=4)
def _placed(name: str, device: torch.device) -> nn.Module:
    import copy

    network = named_classifier(name)
    return network if device.type == "cpu" else copy.deepcopy(network).to(device)


def number_of_classes(draw: ClassifierReference, spec: ModelSpec) -> int:
    """How many classes the classifier of a draw must tell apart on a model."""
    return len(draw.classes.names) if draw.classes is not None else int(getattr(spec, "num_classes", 0))


def check_classes(draw: ClassifierReference, spec: ModelSpec, height: int, width: int) -> None:
    """Raise ``ValueError`` for a classifier of other classes or another picture size than a model's, as far as can be told.

    Before any work: only shapes are computed.
    """
    classifier = named_classifier(draw.classifier) if isinstance(draw.classifier, str) else draw.classifier
    latents = needs_decoder(draw.classifier, spec)
    if isinstance(classifier, Classifier) and not latents:
        own = classifier.spec
        if (own.channels, own.size, own.size) != (spec.channels, height, width):
            raise ValueError(
                f"{own.name} reads pictures {own.channels} x {own.size} x {own.size}, and the model makes "
                f"{spec.channels} x {height} x {width}"
            )
    side = int(getattr(classifier, "size", 64))
    shape = (PICTURE_CHANNELS, side, side) if latents else (spec.channels, height, width)
    found = classifier.spec.num_classes if isinstance(classifier, Classifier) else traced(classifier, shape)[0]
    check_count(draw, spec, found)


def check_count(draw: ClassifierReference, spec: ModelSpec, found: int | None) -> None:
    """Raise ``ValueError`` where a classifier tells ``found`` classes apart (None: unknown), and the model has others."""
    wanted = number_of_classes(draw, spec)
    if found is not None and found != wanted:
        whose = "the rule names" if draw.classes is not None else f"{spec.name} has"
        raise ValueError(f"the classifier {draw.classifier_name} tells {found} classes apart, and {whose} {wanted}")


def classifier_flops(classifier: str | Logits, spec: ModelSpec, height: int, width: int) -> int | None:
    """FLOPs of classifying one sample; None where they cannot be counted, as those of a decoder without an engine."""
    if needs_decoder(classifier, spec):
        return None
    shape = spec.channels, height, width
    return _named_flops(classifier, shape) if isinstance(classifier, str) else traced(classifier, shape)[1]


@lru_cache(maxsize=16)
def _named_flops(name: str, shape: tuple[int, int, int]) -> int | None:
    return traced(named_classifier(name), shape)[1]


def traced(network: Logits, shape: tuple[int, int, int], device: torch.device | None = None) -> tuple[int | None, int | None]:
    """Classes and FLOPs of a classifier for a sample of ``shape`` (C, H, W), from shapes alone; None where it needs values."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    devices = {parameter.device for parameter in network.parameters()} if isinstance(network, nn.Module) else set()
    device = device or (devices.pop() if len(devices) == 1 else torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter:
            logits = network(torch.zeros(1, *shape, device=device))
    except Exception:  # foreign code may do anything with a tensor that has no values
        return None, None
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        return None, None
    return int(logits.shape[1]), int(counter.get_total_flops())


def probed(network: Logits, draw: ClassifierReference, spec: ModelSpec, size: tuple[int, int], device: torch.device) -> None:
    """Ask a classifier about two empty estimates, once, before a run: ``ValueError`` unless it gives logits [2, classes]."""
    logits = network(torch.zeros(2, spec.channels, *size, device=device))
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        found = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the classifier {draw.classifier_name} must give logits [B, classes] of B estimates, got {found} for 2"
        )
    check_count(draw, spec, logits.shape[1])
