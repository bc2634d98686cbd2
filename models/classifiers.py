"""Small image classifiers of two families: one chooses and guides, the other judges what the first chose.

Neither keeps running statistics, so there is no mode in which a score would differ from another.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bundled import CLASSIFIERS, classifier_file
from .small_networks import SmallSpec, load_small
from .spec import positive_integer

Family = Literal["convolutional", "transformer"]
GROUPS = 8  # of channels that are normalised together


@dataclass(frozen=True)
class ClassifierSpec(SmallSpec):
    """Sizes of a classifier.

    ``convolutional``: ``widths`` are the channels at full, half, ... resolution, ``depth`` the residual blocks of each.
    ``transformer``: one width, ``depth`` blocks of ``heads`` heads over tokens of 4 x 4 pixels.
    ``parents[c]`` is the superclass of class ``c``.
    """

    kind: ClassVar[str] = "a classifier"
    told_by: ClassVar[frozenset[str]] = frozenset({"family", "widths"})

    family: Family
    channels: int
    size: int
    widths: tuple[int, ...]
    depth: int
    num_classes: int
    heads: int = 4
    parents: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("channels", "size", "depth", "num_classes", "heads"):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))
        for name in ("widths", "parents", "class_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.family not in get_args(Family):
            raise ValueError(f"family must be one of {', '.join(get_args(Family))}, got {self.family!r}")
        unit = GROUPS if self.family == "convolutional" else self.heads
        if not self.widths or any(positive_integer("a width", width) % unit for width in self.widths):
            raise ValueError(f"widths must be positive multiples of {unit}, got {self.widths}")
        if self.family == "transformer" and (len(self.widths) > 1 or self.size % PATCH):
            raise ValueError(
                f"a transformer takes one width and a size that is a multiple of {PATCH}, got {self.widths}, {self.size}"
            )
        for name in ("parents", "class_names"):
            given = len(getattr(self, name))
            if given and given != self.num_classes:
                raise ValueError(f"{name} must have one entry for each of {self.num_classes} classes, got {given}")


class Classifier(nn.Module):
    """Features of a body, then a linear head; pictures are [B, C, size, size] in [-1, 1]."""

    def __init__(self, spec: ClassifierSpec):
        super().__init__()
        self.spec = spec
        width = spec.widths[-1]
        self.body = _Convolutions(spec) if spec.family == "convolutional" else _Transformer(spec)
        self.head = nn.Linear(width, spec.num_classes)

    def initialize(self) -> "Classifier":
        """The start of a training run: PyTorch's own initialisation, with a head that favours no class."""
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        return self

    def features(self, pictures: Tensor) -> Tensor:
        """[B, C, size, size] -> [B, F], what the head reads."""
        wanted = (self.spec.channels, self.spec.size, self.spec.size)
        if pictures.dim() != 4 or pictures.shape[1:] != wanted:
            shape = ", ".join(map(str, wanted))
            raise ValueError(f"{self.spec.name} reads pictures [B, {shape}], got {list(pictures.shape)}")
        return self.body(pictures)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, C, size, size] -> logits [B, num_classes]"""
        return self.head(self.features(pictures))


# --- convolutional ---------------------------------------------------------------------------------------------------


class _ResidualBlock(nn.Module):
    """Normalise, activate, convolve, twice; added to what came in."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class _Convolutions(nn.Module):
    """Residual blocks at falling resolution, then the mean over the picture."""

    def __init__(self, spec: ClassifierSpec):
        super().__init__()
        layers: list[nn.Module] = []
        narrow = spec.channels
        for index, width in enumerate(spec.widths):
            layers.append(nn.Conv2d(narrow, width, 3, padding=1, stride=1 if index == 0 else 2))
            layers += [_ResidualBlock(width) for _ in range(spec.depth)]
            narrow = width
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(GROUPS, narrow)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.layers(x))).mean(dim=(2, 3))


# --- transformer -----------------------------------------------------------------------------------------------------

PATCH = 4  # pixels of a token's side: two convolutions of stride 2


class _TransformerBlock(nn.Module):
    """Self-attention and a perceptron, each after a norm and added to what came in."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x [B, H, L, K]
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class _Transformer(nn.Module):
    """Two strided convolutions, a learned position, attention blocks, then the mean over the tokens."""

    def __init__(self, spec: ClassifierSpec):
        super().__init__()
        (width,) = spec.widths
        tokens = (spec.size // PATCH) ** 2
        self.stem1 = nn.Conv2d(spec.channels, width // 2, 3, stride=2, padding=1)
        self.stem2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.blocks = nn.Sequential(*(_TransformerBlock(width, spec.heads) for _ in range(spec.depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem2(F.silu(self.stem1(x))).flatten(2).transpose(1, 2)  # [B, L, D]
        return self.norm(self.blocks(x + self.position)).mean(dim=1)


# --- files -----------------------------------------------------------------------------------------------------------


def load_classifier(source: str | Path) -> Classifier:
    """A classifier in fp32 on the CPU, without gradients: a bundled one by name, or a file or training run of our own.

    Raises ``ValueError`` or ``FileNotFoundError`` with one sentence; a bundled one also if it was made beside another model.
    """
    path = classifier_file(source) if isinstance(source, str) and source in CLASSIFIERS else Path(source)
    return load_small(path, ClassifierSpec, Classifier)
