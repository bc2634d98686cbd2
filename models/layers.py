"""Embedders and feed-forward parts shared by the networks; names follow the official DiT checkpoint keys."""

import math

import torch
from torch import Tensor, nn

from segue.kernels.fp8 import Fp8Rows
from segue.kernels.record import Kernels

from .fp8_linear import linear_gated_residual, linear_gelu
from .residuals import Carry


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
    """``E_parent[S(c)] + E_class[c]``; reconstruction after EFDiT (arXiv 2512.05152) and FineDiffusion (2402.18331).

    Labels: classes, then superclasses (their class part is null), then the null label (both parts are null).
    """

    def __init__(self, parents: tuple[int, ...], dim: int):
        super().__init__()
        classes, num_parents = len(parents), max(parents) + 1
        self.parent_table = nn.Embedding(num_parents + 1, dim)
        self.class_table = nn.Embedding(classes + 1, dim)
        parent_of = [*parents, *range(num_parents), num_parents]
        class_of = [*range(classes), *([classes] * (num_parents + 1))]
        # on the CPU even when the module is built on the meta device: checkpoints do not hold these tables
        self.register_buffer("parent_of", torch.tensor(parent_of, device="cpu"), persistent=False)
        self.register_buffer("class_of", torch.tensor(class_of, device="cpu"), persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        """labels [N] int64 -> [N, D]."""
        return self.parent_table(self.parent_of[labels]) + self.class_table(self.class_of[labels])


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
