"""Embedders and feed-forward parts shared by the networks; names follow the official DiT checkpoint keys."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segue.kernels.fp8 import Fp8Rows
from segue.kernels.record import Kernels

from .fp8_linear import grouped_linear, grouped_linear_gelu, linear_gated_residual, linear_gelu
from .residuals import Carry, Residual


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of the time input, then a two-layer perceptron.  Source: DiT.

    ``frequency_shift`` is 0 in the official code and 1 in diffusers' DiT.
    """

    FREQUENCIES = 256

    def __init__(self, dim: int, frequency_shift: float = 0.0):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.frequency_shift = frequency_shift

    def forward(self, time: Tensor) -> Tensor:
        """time [N] -> [N, D] in the dtype of the weights; the features are computed in fp32."""
        half = self.FREQUENCIES // 2
        index = torch.arange(half, dtype=torch.float32, device=time.device)
        frequency = torch.exp(-math.log(10000.0) * index / (half - self.frequency_shift))
        angle = time.float()[:, None] * frequency
        features = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """One row per class and a last row for the null label.  Source: DiT."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels: Tensor) -> Tensor:
        """labels [N] int64 -> [N, D]."""
        return self.embedding_table(labels)


class TieredLabelEmbedder(nn.Module):
    """``sum_t E_t[ancestor_t(c)] + alpha E_class[c]``, ``alpha`` being ``class_weight``.

    Reconstruction after EFDiT (arXiv 2512.05152) and FineDiffusion (2402.18331).  Labels: classes, then the members of each
    tier above them, the nearest tier first, then the null label.  Of a label that stands for a tier, the parts below it are
    null; of the null label all are.
    """

    def __init__(self, ancestors: tuple[tuple[int, ...], ...], dim: int, class_weight: float = 1.0):
        """``ancestors[t][c]`` is the ancestor of class ``c`` in tier ``t``; there is at least one tier."""
        super().__init__()
        classes, counts = len(ancestors[0]), [max(tier) + 1 for tier in ancestors]
        self.parent_table = nn.Embedding(counts[0] + 1, dim)
        self.class_table = nn.Embedding(classes + 1, dim)
        self.tier_tables = nn.ModuleList(nn.Embedding(count + 1, dim) for count in counts[1:])
        self.class_weight = class_weight
        # on the CPU even when the module is built on the meta device: checkpoints do not hold these tables
        class_of = [*range(classes), *([classes] * (sum(counts) + 1))]
        self.register_buffer("class_of", torch.tensor(class_of, device="cpu"), persistent=False)
        members = torch.tensor(_members(ancestors), device="cpu")  # [tiers, labels]
        self.register_buffer("parent_of", members[0].clone(), persistent=False)
        self.register_buffer("tiers_of", members[1:].clone(), persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        """labels [N] int64 -> [N, D]."""
        own = self.class_table(self.class_of[labels])
        total = self.parent_table(self.parent_of[labels]) + (own if self.class_weight == 1 else own * self.class_weight)
        for table, member in zip(self.tier_tables, self.tiers_of, strict=True):
            total = total + table(member[labels])
        return total


def _members(ancestors: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """The row of every tier's table that each label takes; the null row, the last, below the tier that a label stands for."""
    counts = [max(tier) + 1 for tier in ancestors]
    taken = [[*tier] for tier in ancestors]
    for own, tier in enumerate(ancestors):
        for member in range(counts[own]):
            label = tier.index(member) if member in tier else None  # a member without classes has no ancestors
            for other, rows in enumerate(taken):
                known = other >= own and label is not None
                rows.append(member if other == own else ancestors[other][label] if known else counts[other])
    return [[*rows, count] for rows, count in zip(taken, counts, strict=True)]


class Mlp(nn.Module):
    """Linear, GELU (tanh approximation), linear, and the gated residual around them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, h: Tensor, x: Tensor | Fp8Rows, gate: Tensor, kernels: Kernels, carry: Carry | None = None) -> Tensor:
        """``h + gate * mlp(x)``, written into ``h`` unless ``kernels`` are the differentiable ones; the sum may be carried.

        h, x [R, L, D]; gate [R, 1, D].
        """
        h, residual = linear_gated_residual(h, linear_gelu(x, self.fc1, kernels), self.fc2, gate, kernels)
        return Carry.left(h, residual, carry, kernels)


@dataclass(frozen=True, eq=False)
class MlpInput:
    """What an MLP of one stream takes: state ``h`` [R, L, D], its norm ``x``, ``gate`` [R, 1, D], and who carries the sum."""

    mlp: Mlp
    h: Tensor
    x: Tensor | Fp8Rows
    gate: Tensor
    carry: Carry | None = None


def two_mlps(first: MlpInput, second: MlpInput, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """:class:`Mlp` of two streams, each pair of layers in one product where ``kernels`` have such; their states."""
    streams = first, second
    hidden = grouped_linear_gelu(first.x, first.mlp.fc1, second.x, second.mlp.fc1, kernels)
    if kernels.linear_gated_residual is None:
        made = grouped_linear(hidden[0], first.mlp.fc2, hidden[1], second.mlp.fc2, kernels)
        left = [(own.h, Residual(y, own.gate)) for own, y in zip(streams, made, strict=True)]
    else:
        left = [linear_gated_residual(own.h, y, own.mlp.fc2, own.gate, kernels) for own, y in zip(streams, hidden, strict=True)]
    h, c = (Carry.left(*each, own.carry, kernels) for own, each in zip(streams, left, strict=True))
    return h, c


class PatchEmbed(nn.Module):
    """A convolution with stride = kernel = patch.  [B, C, H, W] -> [B, L, D]."""

    def __init__(self, patch: int, channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def sincos_position_table(dim: int, rows: int, columns: int, base_rows: int, base_columns: int) -> Tensor:
    """Two-dimensional sine-cosine position table [rows * columns, dim] in fp32, columns in the first half.

    Positions are scaled to the grid the model was trained on (``base_*``), which is the identity for that grid.
    Computed on the CPU whatever the default device.  Source: MAE, as used by DiT; the scaling is diffusers'.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4 for a 2-D position table, got {dim}")
    frequency = 1.0 / 10000.0 ** (torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim / 4.0))
    y = torch.arange(rows, dtype=torch.float64, device="cpu") * (base_rows / rows)
    x = torch.arange(columns, dtype=torch.float64, device="cpu") * (base_columns / columns)

    def features(position: Tensor) -> Tensor:
        angle = position[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    table = torch.cat(
        [
            features(x)[None].expand(rows, -1, -1),
            features(y)[:, None].expand(-1, columns, -1),
        ],
        dim=-1,
    )
    return table.reshape(rows * columns, dim).float()
