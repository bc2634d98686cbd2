"""Extractors: any callable from pictures [B, C, H, W] in [-1, 1] to features [B, F]; and two that need no weights.

Features choose what a score sees, and weights that were chosen by one extractor look best to it: choose with one, judge with
another.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .features import check_features

Extractor = Callable[[Tensor], Tensor]
Named = tuple[str, Extractor]


@torch.no_grad()
def features_of(pictures: Tensor | Iterable[Tensor], extractor: Extractor, batch: int = 64) -> Tensor:
    """Features [N, F] fp32 of pictures [N, C, H, W], or of batches of them, ``batch`` at a time.

    ``ValueError`` for pictures of another shape or outside [-1, 1], and for features that are not finite or not one row each.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    found = []
    for given in (pictures,) if isinstance(pictures, Tensor) else pictures:
        if given.dim() != 4:
            raise ValueError(f"pictures must have shape [N, C, H, W], got {list(given.shape)}")
        if given.numel() and not float(given.abs().amax()) <= 1 + 1e-6:
            raise ValueError(f"pictures must lie in [-1, 1], got values up to {float(given.abs().amax()):g}")
        for part in given.split(batch):
            features = extractor(part)
            if len(features) != len(part):
                raise ValueError(f"the extractor gave {len(features)} features for {len(part)} pictures")
            check_features(features, "the extractor's features", least=1)
            found.append(features.detach().float().cpu())
    return torch.cat(found)


def colour_statistics(pictures: Tensor, cells: int = 4) -> Tensor:
    """Mean and deviation of every channel in ``cells`` x ``cells`` parts of the picture: [B, 2 C cells^2].

    Sees colour and coarse layout, and no shape.
    """
    cut = nn.functional.adaptive_avg_pool2d
    mean = cut(pictures, cells)
    variance = cut(pictures.square(), cells) - mean.square()
    return torch.cat([mean.flatten(1), variance.clamp_min(0).sqrt().flatten(1)], dim=1)


class RandomConvolutions(nn.Module):
    """Three convolutions with random weights, the same for the same seed on every machine, and the mean of what they find.

    Sees texture and edges; good features need no training to tell two distributions apart (arXiv 2203.06026 discusses it).
    """

    def __init__(self, channels: int = 3, features: int = 64, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = (channels, features // 4, features // 2, features)
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layer = nn.Conv2d(narrow, wide, 3, padding=1, bias=False)
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / (9 * narrow)) ** 0.5
            layers += [layer, nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]
        self.layers = nn.Sequential(*layers).requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, features]"""
        return self.layers(pictures).mean(dim=(2, 3))
