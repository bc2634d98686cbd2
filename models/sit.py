"""DiT (arXiv 2212.09748) and SiT (arXiv 2401.08740): class-conditional transformers on latent patches.

Parameter names are those of the official checkpoints.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segue.kernels.combine import unpatchify
from segue.kernels.fp8 import Fp8Rows
from segue.kernels.record import DIFFERENTIABLE, Kernels

from .attention_kind import ProbSparse, parse_attention
from .fp8_linear import apply_linear, residual_norm
from .layers import LabelEmbedder, Mlp, PatchEmbed, TieredLabelEmbedder, TimestepEmbedder, sincos_position_table
from .residuals import Carry, Residual
from .rows import FULL, Segment
from .spec import SiTSpec


class Attention(nn.Module):
    """Multi-head self-attention with one fused QKV projection and optional per-head norm of q and k.

    With ``sparse`` it is ProbSparse attention wherever it is not perturbed.
    """

    def __init__(self, dim: int, heads: int, qk_norm: bool, sparse: ProbSparse | None = None):
        super().__init__()
        self.heads, self.sparse = heads, sparse
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor | Fp8Rows, kernels: Kernels, segments: tuple[Segment, ...] = ()) -> Tensor:
        """x [R, L, D] -> [R, L, D]; ``segments`` gives the operation of each range of rows (empty: all full)."""
        q, k, v = kernels.split_heads_norm(apply_linear(x, self.qkv, kernels), self.heads)  # [R, H, L, K]
        q, k = self.q_norm(q), self.k_norm(k)
        attend = kernels.attention
        if self.sparse is not None:
            queries, keys = self.sparse.budgets(q.shape[2])
            attend = partial(kernels.sparse_attention, queries=queries, keys=keys)
        if not segments:
            return apply_linear(attend(q, k, v), self.proj, kernels)
        return zero_skipped(apply_linear(attend_segments(q, k, v, kernels, segments, attend), self.proj, kernels), segments)


def attend_segments(
    q: Tensor, k: Tensor, v: Tensor, kernels: Kernels, segments: tuple[Segment, ...], attend: Callable | None = None
) -> Tensor:
    """Attention where ranges of rows do different operations.  q, k, v [R, H, T, K] -> [R, T, H K].

    ``attend`` is the full operation, by default that of the kernels.
    """
    attend, parts = attend or kernels.attention, []
    for segment in segments:
        rows = slice(segment.start, segment.stop)
        if segment.operation == FULL:
            parts.append(attend(q[rows], k[rows], v[rows]))
        else:
            parts.append(kernels.perturbed_attention(q[rows], k[rows], v[rows], segment.operation))
    return torch.cat(parts)


def zero_skipped(y: Tensor, segments: tuple[Segment, ...]) -> Tensor:
    """Zero, in place, the attention output of rows that skip attention: their projection bias must not act either."""
    for segment in segments:
        if segment.operation == "attention_skip":
            y[segment.start : segment.stop] = 0
    return y


class AffineNorm(nn.Module):
    """Weight and bias of a norm that has none in DiT; the identity at the start.  Source: FineDiffusion (arXiv 2402.18331).

    The norm itself is that of the block, with these folded into its modulation.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def folded(self, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale [N, D] such that ``n (1 + scale') + shift' = (w n + b) (1 + scale) + shift``."""
        return shift + self.bias * (1 + scale), scale * self.weight + (self.weight - 1)


class Block(nn.Module):
    """adaLN-Zero transformer block."""

    def __init__(self, spec: SiTSpec):
        super().__init__()
        self.attn = Attention(spec.dim, spec.heads, spec.qk_norm, parse_attention(spec.attention))
        self.mlp = Mlp(spec.dim, spec.mlp_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(spec.dim, 6 * spec.dim))
        self.mlp_norm_eps = spec.mlp_norm_eps
        if spec.affine_norms:
            self.norm1, self.norm2 = AffineNorm(spec.dim), AffineNorm(spec.dim)

    def modulation(self, condition: Tensor) -> Tensor:
        """condition [N, D] -> [N, 6 D]: shift, scale and gate of both halves, with the weights of affine norms folded in."""
        modulation = self.adaLN_modulation(condition)
        if not hasattr(self, "norm1"):
            return modulation
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        attention, mlp = self.norm1.folded(shift_a, scale_a), self.norm2.folded(shift_m, scale_m)
        return torch.cat([*attention, gate_a, *mlp, gate_m], dim=-1)

    def modulation_weights(self) -> Iterator[Tensor]:
        """The parameters that :meth:`modulation` reads."""
        yield from self.adaLN_modulation.parameters()
        if hasattr(self, "norm1"):
            yield from (*self.norm1.parameters(), *self.norm2.parameters())

    def forward(
        self,
        h: Tensor,
        modulation: Tensor,
        kernels: Kernels,
        segments: tuple[Segment, ...] = (),
        carry: Carry | None = None,
    ) -> Tensor:
        """h [R, L, D], modulation [R, 6 D] -> [R, L, D], written into ``h`` unless ``kernels`` are the differentiable ones.

        With a ``carry`` both states wait for what it holds, before and after.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation[:, None].chunk(6, dim=-1)  # [R, 1, D]
        h, n = residual_norm(h, Carry.taken(carry), shift_a, scale_a, self.attn.qkv, kernels)
        attended = Residual(self.attn(n, kernels, segments), gate_a)
        h, n = residual_norm(h, attended, shift_m, scale_m, self.mlp.fc1, kernels, self.mlp_norm_eps)
        return self.mlp(h, n, gate_m, kernels, carry)


class FinalLayer(nn.Module):
    """Final norm, modulation and projection to patches; also the shape of an early-exit head."""

    def __init__(self, dim: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(dim, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """h [R, L, D], modulation [R, 2 D] -> [R, L, outputs]."""
        shift, scale = modulation[:, None].chunk(2, dim=-1)
        return self.linear(DIFFERENTIABLE.modulated_norm(h, shift, scale))


class ConditionEmbedder(nn.Module):
    """Time embedding plus label embedding."""

    def __init__(self, spec: SiTSpec):
        super().__init__()
        self.t_embedder = TimestepEmbedder(spec.dim, spec.frequency_shift)
        if spec.ancestors:
            self.y_embedder = TieredLabelEmbedder(spec.ancestors, spec.dim, spec.class_weight)
        else:
            self.y_embedder = LabelEmbedder(spec.num_classes, spec.dim)

    def forward(self, time: Tensor, labels: Tensor) -> Tensor:
        """time [N], labels [N] -> [N, D]."""
        return self.t_embedder(time) + self.y_embedder(labels)


class Pass(NamedTuple):
    """A plain forward and what was asked of its way.

    ``states[k]`` [B, L, D] is the state before block k, after the last for k = depth; modulation [B, W].
    """

    output: Tensor
    exits: dict[int, Tensor]
    states: dict[int, Tensor]
    modulation: Tensor
    projections: tuple[Tensor, ...] = ()  # [B, L, Z] each, of a SiTWithProjectors


class SiT(nn.Module):
    """A DiT or SiT whose layers can run over row prefixes."""

    def __init__(self, spec: SiTSpec):
        super().__init__()
        self.spec = spec
        self.x_embedder = PatchEmbed(spec.patch, spec.channels, spec.dim)
        # diffusers' DiT holds an embedder in every block; the official layout has one for all
        self.embedders = nn.ModuleList(ConditionEmbedder(spec) for _ in range(spec.depth if spec.per_block_embedding else 1))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        outputs = spec.patch**2 * spec.out_channels
        self.final_layer = FinalLayer(spec.dim, outputs)
        self.exit_layers = nn.ModuleDict({str(layer): FinalLayer(spec.dim, outputs) for layer in spec.exits})
        self.register_buffer("pos_embed", self.position_table(spec.height, spec.width), persistent=False)

    def position_table(self, height: int, width: int) -> Tensor:
        """Position table [L, D] for a latent of ``height`` x ``width``."""
        spec = self.spec
        spec.check_size(height, width)
        grid = (height // spec.patch, width // spec.patch, spec.height // spec.patch, spec.width // spec.patch)
        return sincos_position_table(spec.dim, *grid)

    def positions(self, height: int, width: int) -> Tensor:
        """The table [L, D] added to the tokens: at the native size the buffer, which may be a checkpoint's own."""
        if (height, width) == (self.spec.height, self.spec.width):
            return self.pos_embed
        return self.position_table(height, width).to(self.pos_embed)

    def initialize(self) -> "SiT":
        """The initialisation of the DiT paper: Xavier linears, zero gates and zero heads."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        patch = self.x_embedder.proj
        nn.init.xavier_uniform_(patch.weight.view(patch.weight.shape[0], -1))
        nn.init.zeros_(patch.bias)
        for embedder in self.embedders:
            for index in (0, 2):
                nn.init.normal_(embedder.t_embedder.mlp[index].weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        for head in (self.final_layer, *self.exit_layers.values()):
            nn.init.zeros_(head.adaLN_modulation[1].weight)
            nn.init.zeros_(head.linear.weight)
        return self

    # --- one plain forward, as in training -------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        labels: Tensor,
        exits: bool = False,
        states: Sequence[int] | None = None,
        embedding: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]] | Pass:
        """The network's own output [B, C_out, H, W]; with ``exits`` also a dict of the early-exit outputs by layer.

        x [B, C, H, W]; time [B] in the convention of ``spec.time``; labels [B] int64; ``embedding`` [B, D] is added to those of
        time and label.  With ``states``, numbers of blocks, a :class:`Pass` that has the states before these.
        """
        found = self.full_pass(x, time, labels, exits, () if states is None else states, embedding)
        if states is not None:
            return found
        return (found.output, found.exits) if exits else found.output

    def full_pass(
        self, x: Tensor, time: Tensor, labels: Tensor, exits: bool, states: Sequence[int], embedding: Tensor | None = None
    ) -> Pass:
        """All blocks, one after the other; the early exits only with ``exits``."""
        height, width = x.shape[-2:]
        modulation = self.modulation(time, labels, embedding)
        per_block, final, exit_modulation = self.split_modulation(modulation)
        h, heads, kept = self.embed(x), {}, {}
        for layer, block in enumerate(self.blocks):
            if exits and layer in self.spec.exits:
                out = self.exit_layers[str(layer)](h, exit_modulation[layer])
                heads[layer] = unpatchify(out, self.spec.patch, height, width)
            if layer in states:
                kept[layer] = h
            h = block(h, per_block[layer], DIFFERENTIABLE)
        out = unpatchify(self.final_layer(h, final), self.spec.patch, height, width)
        if self.spec.depth in states:
            kept[self.spec.depth] = h
        return Pass(out, heads, kept, modulation)

    def rest(self, h: Tensor, modulation: Tensor, first: int, skipped: Sequence[int], height: int, width: int) -> Tensor:
        """The output [B, C_out, height, width] of a forward that stands before block ``first``, without the ``skipped`` blocks.

        h [B, L, D], modulation [B, W], as a :class:`Pass` has them.
        """
        per_block, final, _ = self.split_modulation(modulation)
        for layer in range(first, self.spec.depth):
            if layer not in skipped:
                h = self.blocks[layer](h, per_block[layer], DIFFERENTIABLE)
        return unpatchify(self.final_layer(h, final), self.spec.patch, height, width)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> tokens [B, L, D]."""
        dtype = self.x_embedder.proj.weight.dtype
        return self.x_embedder(x.to(dtype)) + self.positions(*x.shape[-2:]).to(dtype)

    # --- modulation: everything that depends on time and condition only ---------------------------------------------

    def modulation(self, time: Tensor, labels: Tensor, embedding: Tensor | None = None) -> Tensor:
        """All modulation vectors of N (time, label) pairs as [N, W], W = :attr:`modulation_width`.

        time [N]; labels [N] int64; ``embedding`` [N, D] is added to theirs.  Nothing in it depends on the sample, so a run
        computes it once for all its calls.
        """
        conditions = [embedder(time, labels) for embedder in self.embedders]
        if embedding is not None:
            conditions = [condition + embedding for condition in conditions]
        parts = [block.modulation(conditions[min(layer, len(conditions) - 1)]) for layer, block in enumerate(self.blocks)]
        heads = (self.final_layer, *self.exit_layers.values())
        return torch.cat(parts + [head.adaLN_modulation(conditions[0]) for head in heads], dim=-1)

    def gate_columns(self) -> Tensor:
        """The block whose gate each column of the modulation is, [W] int64; ``depth`` for the columns that are no gates."""
        spec = self.spec
        columns = [layer if chunk in (2, 5) else spec.depth for layer in range(spec.depth) for chunk in range(6)]
        columns += [spec.depth] * (2 + 2 * len(spec.exits))
        return torch.tensor(columns, device="cpu").repeat_interleave(spec.dim)

    @property
    def modulation_width(self) -> int:
        """W, the columns of :meth:`modulation`."""
        return (6 * self.spec.depth + 2 + 2 * len(self.spec.exits)) * self.spec.dim

    def head(self, layer: int) -> nn.Linear:
        """The projection to patches after ``layer`` blocks: the last one, or that of an early exit."""
        return (self.final_layer if layer == self.spec.depth else self.exit_layers[str(layer)]).linear

    def projection(self, layer: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Weight and bias of a head for the channels that a sampler uses, ``first`` and on.

        A head that also learns a variance has twice as many.
        """
        spec, linear = self.spec, self.head(layer)
        if spec.out_channels == spec.channels:
            return linear.weight, linear.bias
        used = slice(first, first + spec.channels)
        weight = linear.weight.view(-1, spec.out_channels, spec.dim)[:, used].reshape(-1, spec.dim)
        return weight, linear.bias.view(-1, spec.out_channels)[:, used].reshape(-1)

    def run_weights(self) -> Iterator[Tensor]:
        """What a run computes with once: the embedders of times and labels, the modulation, the position table."""
        for block in self.blocks:
            yield from block.modulation_weights()
        for head in (self.final_layer, *self.exit_layers.values()):
            yield from head.adaLN_modulation.parameters()
        yield from self.embedders.parameters()
        yield self.pos_embed

    def split_modulation(self, modulation: Tensor) -> tuple[tuple[Tensor, ...], Tensor, dict[int, Tensor]]:
        """[N, W] -> ([N, 6 D] per block, [N, 2 D] of the final layer, [N, 2 D] per exit layer); views."""
        spec = self.spec
        sizes = [6 * spec.dim] * spec.depth + [2 * spec.dim] * (1 + len(spec.exits))
        parts = modulation.split(sizes, dim=-1)
        exits = dict(zip(spec.exits, parts[spec.depth + 1 :], strict=True))
        return parts[: spec.depth], parts[spec.depth], exits
