"""A small convolutional network that gives pictures the frequencies that their size has no room for: twice as large."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from .bundled import ENHANCERS, enhancer_file
from .small_networks import SmallSpec, load_small
from .spec import positive_integer
from .spectrum import back_projected, enlarge


@dataclass(frozen=True)
class EnhancerSpec(SmallSpec):
    """Sizes of an enhancer: pictures of ``channels``, ``depth`` residual blocks of ``width`` channels, ``factor`` a side."""

    kind: ClassVar[str] = "an enhancer"
    told_by: ClassVar[frozenset[str]] = frozenset({"width", "depth", "factor"})

    channels: int
    width: int
    depth: int
    factor: int = 2

    def __post_init__(self):
        for name in ("channels", "width", "depth", "factor"):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))
        if self.factor < 2:
            raise ValueError(f"an enhancer enlarges by a factor of at least 2, got {self.factor}")


class _ResidualBlock(nn.Module):
    """Convolve, activate, convolve; added to what came in."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(x)))


class Enhancer(nn.Module):
    """``x`` zero-padded in frequency, plus high frequencies of which the network leaves none within the band of ``x``.

    What it makes reduces to ``x``: the low frequencies are projected back.  Reconstruction after EFDiT (arXiv 2512.05152),
    which states an enhancement and a degradation by Fourier transforms; residual blocks and sub-pixel convolution as in EDSR
    (arXiv 1707.02921).
    """

    def __init__(self, spec: EnhancerSpec):
        super().__init__()
        self.spec = spec
        self.head = nn.Conv2d(spec.channels, spec.width, 3, padding=1)
        self.blocks = nn.Sequential(*(_ResidualBlock(spec.width) for _ in range(spec.depth)))
        self.tail = nn.Conv2d(spec.width, spec.channels * spec.factor**2, 3, padding=1)

    def initialize(self) -> "Enhancer":
        """The start of a training run: PyTorch's own initialisation, with no detail at all."""
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] in [-1, 1], any size -> [B, C, factor H, factor W], which may pass that range a little."""
        if x.dim() != 4 or x.shape[1] != self.spec.channels:
            raise ValueError(f"{self.spec.name} enlarges pictures [B, {self.spec.channels}, H, W], got {list(x.shape)}")
        detail = F.pixel_shuffle(self.tail(self.blocks(self.head(x))), self.spec.factor).float()
        return back_projected(enlarge(x.float(), *detail.shape[-2:]) + detail, x.float())


def load_enhancer(source: str | Path) -> Enhancer:
    """An enhancer in fp32 on the CPU, without gradients: a bundled one by name, or a file or training run of our own.

    Raises ``ValueError`` or ``FileNotFoundError`` with one sentence.
    """
    path = enhancer_file(source) if isinstance(source, str) and source in ENHANCERS else Path(source)
    return load_small(path, EnhancerSpec, Enhancer)
