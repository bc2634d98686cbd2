"""DiT, SiT and REPA written plainly from their papers on a state dict with the official key names; nothing of ours is used.

DiT: arXiv 2212.09748, figure 3 (adaLN-Zero block) and section 3.2; SiT: arXiv 2401.08740; query-key norm and projectors as in
REPA (arXiv 2410.06940).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def position_table(dim: int, grid: int) -> Tensor:
    """MAE's fixed table [grid^2, dim]: for each axis sines then cosines of pos / 10000^(i / (dim / 4)), column axis first."""
    table = np.zeros((grid * grid, dim))
    quarter = dim // 4
    for token in range(grid * grid):
        for axis, position in enumerate((token % grid, token // grid)):
            for i in range(quarter):
                angle = position / 10000 ** (i / quarter)
                table[token, axis * 2 * quarter + i] = math.sin(angle)
                table[token, axis * 2 * quarter + quarter + i] = math.cos(angle)
    return torch.from_numpy(table).float()


def random_state(
    seed: int,
    *,
    depth: int = 3,
    dim: int = 48,
    patch: int = 2,
    channels: int = 4,
    out_channels: int = 8,
    classes: int = 7,
    grid: int = 3,
    hidden: int = 192,
    qk_heads: int = 0,
    mid_layer: bool = False,
    projectors: bool = False,
) -> dict[str, Tensor]:
    """Every parameter random, adaLN and heads included; ``qk_heads`` heads have a query-key norm when positive."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        state[f"{name}.bias"] = 0.2 * torch.randn(outputs, generator=generator)

    def head(name: str) -> None:
        linear(f"{name}.linear", dim, patch * patch * out_channels)
        linear(f"{name}.adaLN_modulation.1", dim, 2 * dim)

    linear("x_embedder.proj", channels * patch * patch, dim)
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"].view(dim, channels, patch, patch)
    linear("t_embedder.mlp.0", 256, dim)
    linear("t_embedder.mlp.2", dim, dim)
    state["y_embedder.embedding_table.weight"] = torch.randn(classes + 1, dim, generator=generator)
    state["pos_embed"] = position_table(dim, grid)[None]
    for layer in range(depth):
        block = f"blocks.{layer}"
        linear(f"{block}.attn.qkv", dim, 3 * dim)
        linear(f"{block}.attn.proj", dim, dim)
        linear(f"{block}.mlp.fc1", dim, hidden)
        linear(f"{block}.mlp.fc2", hidden, dim)
        linear(f"{block}.adaLN_modulation.1", dim, 6 * dim)
        for norm in ("q_norm", "k_norm") if qk_heads else ():
            state[f"{block}.attn.{norm}.weight"] = 1 + 0.3 * torch.randn(dim // qk_heads, generator=generator)
            state[f"{block}.attn.{norm}.bias"] = 0.2 * torch.randn(dim // qk_heads, generator=generator)
    head("final_layer")
    if mid_layer:
        head("mid_layer")
    for index in (0, 2, 4) if projectors else ():
        linear(f"projectors.0.{index}", dim, dim)
    return state


def forward(state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, heads: int, exit_layer: int | None = None) -> Tensor:
    """Network output [B, C_out, H, W] of a square latent x [B, C, H, W] at time t [B] for labels y [B].

    With ``exit_layer`` the output of the ``mid_layer`` head after that many blocks.
    """

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(value: Tensor, eps: float = 1e-6) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)

    def head_norm(name: str, value: Tensor) -> Tensor:
        if f"{name}.weight" not in state:
            return value
        return norm(value, 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(name: str, value: Tensor) -> Tensor:
        batch, tokens, dim = value.shape
        q, k, v = linear(f"{name}.qkv", value).chunk(3, dim=-1)
        q, k, v = (part.view(batch, tokens, heads, dim // heads).transpose(1, 2) for part in (q, k, v))
        q, k = head_norm(f"{name}.q_norm", q), head_norm(f"{name}.k_norm", k)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(dim // heads), dim=-1)
        return linear(f"{name}.proj", (weights @ v).transpose(1, 2).reshape(batch, tokens, dim))

    patch = state["x_embedder.proj.weight"].shape[-1]
    grid = x.shape[-1] // patch
    tiles = F.unfold(x, patch, stride=patch).transpose(1, 2)  # [B, L, C P P]
    h = tiles @ state["x_embedder.proj.weight"].flatten(1).T + state["x_embedder.proj.bias"] + state["pos_embed"]
    angle = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    features = torch.cat([angle.cos(), angle.sin()], dim=-1).to(h.dtype)
    condition = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", features)))
    condition = F.silu(condition + state["y_embedder.embedding_table.weight"][y])[:, None]  # [B, 1, D]
    depth = sum(name.endswith("attn.qkv.bias") for name in state)
    for layer in range(depth if exit_layer is None else exit_layer):
        block = f"blocks.{layer}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = linear(f"{block}.adaLN_modulation.1", condition).chunk(6, dim=-1)
        h = h + gate_a * attention(f"{block}.attn", norm(h) * (1 + scale_a) + shift_a)
        inner = F.gelu(linear(f"{block}.mlp.fc1", norm(h) * (1 + scale_m) + shift_m), approximate="tanh")
        h = h + gate_m * linear(f"{block}.mlp.fc2", inner)
    head = "final_layer" if exit_layer is None else "mid_layer"
    shift, scale = linear(f"{head}.adaLN_modulation.1", condition).chunk(2, dim=-1)
    patches = linear(f"{head}.linear", norm(h) * (1 + scale) + shift)
    return patches_to_image(patches, patch, grid, grid)


def patches_to_image(patches: Tensor, patch: int, rows: int, columns: int) -> Tensor:
    """[B, L, P P C], the channel fastest inside a patch, to [B, C, rows P, columns P]."""
    image = patches.new_empty(patches.shape[0], patches.shape[-1] // patch**2, rows * patch, columns * patch)
    for token in range(rows * columns):
        i, j = token // columns * patch, token % columns * patch
        image[:, :, i : i + patch, j : j + patch] = patches[:, token].unflatten(-1, (patch, patch, -1)).permute(0, 3, 1, 2)
    return image


def guided(state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, heads: int, scale: float, channels: int) -> Tensor:
    """Classifier-free guidance on the first ``channels`` channels, the others conditional; the official ``forward_with_cfg``.

    Returns the channels of the state only: [B, C, H, W].
    """
    null = torch.full_like(y, state["y_embedder.embedding_table.weight"].shape[0] - 1)
    cond, uncond = forward(state, x, t, y, heads), forward(state, x, t, null, heads)
    mixed = uncond[:, :channels] + scale * (cond[:, :channels] - uncond[:, :channels])
    return torch.cat([mixed, cond[:, channels:]], dim=1)[:, : x.shape[1]]
