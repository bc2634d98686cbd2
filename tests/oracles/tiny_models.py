"""Small random networks for tests: every parameter is non-zero, so every branch differs."""

import torch

from segue.models.sit import SiT
from segue.models.spec import SiTSpec


def randomize(model: torch.nn.Module, seed: int, gain: float = 1.0) -> torch.nn.Module:
    """Fill every parameter with scaled normal numbers: weights keep unit variance times ``gain``, vectors are small."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 25
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * gain / fan_in**0.5)
    return model.eval().requires_grad_(False)


def tiny_sit(seed: int = 0, **changes) -> SiT:
    """Depth 5, dim 32, 3 x 5 patches of 2, 6 classes in 2 superclasses, an early-exit head after block 2."""
    settings = {
        "name": "tiny",
        "channels": 4,
        "height": 6,
        "width": 10,
        "patch": 2,
        "dim": 32,
        "depth": 5,
        "heads": 2,
        "prediction": "velocity",
        "time": "sigma",
        "exits": (2,),
        "num_classes": 6,
        "parents": (0, 0, 0, 1, 1, 1),
    }
    return randomize(SiT(SiTSpec(**(settings | changes))), seed)
