"""The samples of a distillation: unit noise and the number of a class or prompt, as a source that needs no data."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..streams import stream_generator


@dataclass
class Noise:
    """Unit normal noise [B, C, H, W] for labels drawn evenly; a source as :class:`..data.source.Source` is."""

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()

    def batch(self, index: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of the stream ``seed``."""
        generator = stream_generator(seed, index)
        noise = torch.randn((size, *self.shape), generator=generator)
        return noise, torch.randint(self.num_classes, (size,), generator=generator)

    def fingerprint(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "classes": self.num_classes}
