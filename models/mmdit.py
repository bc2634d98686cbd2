"""MMDiT: the transformer of SD3 (arXiv 2403.03206) and SD3.5, an image and a text stream joined in attention.

Parameter names are those of the published checkpoints.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.kernels.combine import unpatchify
from segue.kernels.fp8 import Fp8Rows
from segue.kernels.mlp import Projected
from segue.kernels.record import DIFFERENTIABLE, Kernels

from .fp8_linear import (
    apply_linear,
    linear_inputs,
    project_heads,
    project_slices,
    residual2_norm,
    residual_norm,
    residual_norm2,
)
from .joint_attention import JoinedTexts, Stream, attend_rows, image_segments, text_segments
from .layers import Mlp, MlpInput, PatchEmbed, TimestepEmbedder, sincos_position_table, two_mlps
from .mmdit_spec import MMDiTSpec
from .residuals import Carry, Residual
from .rows import Segment
from .sit import FinalLayer, attend_segments, zero_skipped


@dataclass(frozen=True, eq=False, repr=False)
class TextCondition:
    """Prompts as the network takes them: ``context`` [B, M, text_dim], ``pooled`` [B, pooled_dim]."""

    context: Tensor
    pooled: Tensor

    def __post_init__(self):
        if self.context.dim() != 3 or self.pooled.dim() != 2 or len(self.context) != len(self.pooled):
            raise ValueError(
                "a text condition needs context [B, M, text_dim] and pooled [B, pooled_dim], "
                f"got {list(self.context.shape)} and {list(self.pooled.shape)}"
            )

    def __len__(self) -> int:
        return len(self.context)

    def __repr__(self) -> str:
        return f"<TextCondition context {list(self.context.shape)}, pooled {list(self.pooled.shape)}>"

    def detach(self) -> "TextCondition":
        """The same values, outside any graph of autograd."""
        return TextCondition(self.context.detach(), self.pooled.detach())

    def to(self, device: torch.device, dtype: torch.dtype) -> "TextCondition":
        """The same on a device and in a dtype."""
        return TextCondition(self.context.to(device, dtype), self.pooled.to(device, dtype))

    def __getitem__(self, part: slice) -> "TextCondition":
        """The prompts of a range of samples."""
        return TextCondition(self.context[part], self.pooled[part])


class StreamAttention(nn.Module):
    """The projections of one stream around an attention; ``outputs`` is False where the stream ends there."""

    def __init__(self, spec: MMDiTSpec, outputs: bool = True):
        super().__init__()
        self.qkv = nn.Linear(spec.dim, 3 * spec.dim)
        self.ln_q = nn.RMSNorm(spec.head_dim, eps=1e-6) if spec.qk_norm else None
        self.ln_k = nn.RMSNorm(spec.head_dim, eps=1e-6) if spec.qk_norm else None
        self.proj = nn.Linear(spec.dim, spec.dim) if outputs else None

    @property
    def norm_weights(self) -> tuple[Tensor, Tensor] | None:
        """RMSNorm weights [K] of queries and keys, if any."""
        return None if self.ln_q is None else (self.ln_q.weight, self.ln_k.weight)


class StreamBlock(nn.Module):
    """What one stream owns of a joint block; the text stream of the last block ends at the attention."""

    def __init__(self, spec: MMDiTSpec, chunks: int, dual: bool = False, last: bool = False):
        super().__init__()
        self.attn = StreamAttention(spec, outputs=not last)
        self.attn2 = StreamAttention(spec) if dual else None
        self.mlp = None if last else Mlp(spec.dim, spec.mlp_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(spec.dim, chunks * spec.dim))


class JointBlock(nn.Module):
    """One MMDiT block over both streams, optionally with a second attention over the image alone (SD3.5-medium)."""

    def __init__(self, spec: MMDiTSpec, layer: int):
        super().__init__()
        self.heads, self.dim, self.scale_first = spec.heads, spec.dim, spec.scale_first
        self.image_chunks, self.text_chunks = spec.modulation_chunks(layer)
        self.context_block = StreamBlock(spec, self.text_chunks, last=spec.is_last(layer))
        self.x_block = StreamBlock(spec, self.image_chunks, dual=layer in spec.dual_layers)

    def forward(
        self,
        h: Tensor,
        c: Tensor,
        modulation: Tensor,
        kernels: Kernels,
        segments: tuple[Segment, ...] = (),
        carries: tuple[Carry | None, Carry | None] = (None, None),
        joined: JoinedTexts | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image h [R, L, D] and text c [R, M, D], with modulation [R, W], to the same; the last block leaves ``c`` alone.

        Written into ``h`` and ``c`` unless ``kernels`` are the differentiable ones.  ``segments`` gives the operation of each
        range of rows (empty: all full).  With ``carries`` the states wait for what these hold, before and after.  Where a
        segment is joined its rows have two rows of text in ``c``, modulated by those of ``joined``.
        """
        vectors = modulation[:, None].split(self.dim, dim=-1)  # each [R, 1, D]
        image, text = vectors[: self.image_chunks], vectors[self.image_chunks :]
        if joined is not None:
            text = joined.modulation[:, None].split(self.dim, dim=-1)[self.image_chunks :]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = image[:6]
        second = self.x_block.attn2
        qkv, n2 = self.x_block.attn.qkv, None
        if second is None:
            h, n = residual_norm(h, Carry.taken(carries[0]), shift_a, scale_a, qkv, kernels)
        else:
            h, n, n2 = residual_norm2(h, Carry.taken(carries[0]), (shift_a, scale_a, *image[6:8]), qkv, kernels)
        c, m = self._text_norm(c, Carry.taken(carries[1]), text, kernels)
        (y, y_bias), (z, z_bias), y2 = self._attend(n, m, n2, kernels, segments, joined)
        attended, after = Residual(y, gate_a, y_bias), (shift_m, scale_m, self.x_block.mlp.fc1, kernels)
        if y2 is None:
            h, n = residual_norm(h, attended, *after)
        else:
            h, n = residual2_norm(h, attended, Residual(y2, image[8]), *after)
        del n2, y2  # kept through the MLPs they would add to the most that is alive
        if z is None:
            return self.x_block.mlp(h, n, gate_m, kernels, carries[0]), c
        c, m = residual_norm(c, Residual(z, text[2], z_bias), text[3], text[4], self.context_block.mlp.fc1, kernels)
        of_text = MlpInput(self.context_block.mlp, c, m, text[5], carries[1])
        return two_mlps(MlpInput(self.x_block.mlp, h, n, gate_m, carries[0]), of_text, kernels)

    def _text_norm(
        self, c: Tensor, before: Residual | None, text: tuple[Tensor, ...], kernels: Kernels
    ) -> tuple[Tensor, Tensor | Fp8Rows]:
        shift, scale = text[:2]
        if len(text) == 2 and self.scale_first:
            shift, scale = scale, shift
        return residual_norm(c, before, shift, scale, self.context_block.attn.qkv, kernels)

    def _attend(
        self,
        n: Tensor | Fp8Rows,
        m: Tensor | Fp8Rows,
        n2: Tensor | Fp8Rows | None,
        kernels: Kernels,
        segments: tuple[Segment, ...],
        joined: JoinedTexts | None,
    ) -> tuple[Projected, Projected | tuple[None, None], Tensor | None]:
        """n, n2 [R, L, D] and m [R, M, D] -> the joint attention as :meth:`_project`, and the second one, None without.

        What the attentions leave is alive in here alone.
        """
        image, text, second = self.x_block.attn, self.context_block.attn, self.x_block.attn2
        streams = Stream(n, image.qkv, image.norm_weights), Stream(m, text.qkv, text.norm_weights)
        o, o_text = attend_rows(*streams, self.heads, kernels, segments, None if joined is None else joined.numbers)
        o2 = None if second is None else self._image_attention(second, n2, kernels, image_segments(segments))
        o, o_text, o2 = linear_inputs(image.proj, kernels, o, None if text.proj is None else o_text, o2)
        of_image, of_text = self._project(o, o_text, m.shape, kernels, segments)
        y2 = None if second is None else zero_skipped(apply_linear(o2, second.proj, kernels), image_segments(segments))
        return of_image, of_text, y2

    def _image_attention(
        self, attn: StreamAttention, n: Tensor | Fp8Rows, kernels: Kernels, segments: tuple[Segment, ...]
    ) -> Tensor:
        """The second attention, n [R, L, D] -> [R, L, D]."""
        q, k, v = project_heads(n, attn.qkv, self.heads, attn.norm_weights, kernels)
        return attend_segments(q, k, v, kernels, segments) if segments else kernels.attention(q, k, v)

    def _project(
        self,
        o: Tensor | Fp8Rows,
        o_text: Tensor | Fp8Rows | None,
        text_shape: torch.Size,
        kernels: Kernels,
        segments: tuple[Segment, ...],
    ) -> tuple[Projected, Projected | tuple[None, None]]:
        """The out-projections of the joint attention, the text's in its own shape; None where its stream ends."""
        image, text = self.x_block.attn, self.context_block.attn
        if any(segment.operation == "attention_skip" for segment in segments):  # their rows get no bias either
            y = zero_skipped(apply_linear(o, image.proj, kernels), segments)
            if o_text is None:
                return (y, None), (None, None)
            z = apply_linear(o_text, text.proj, kernels).view(text_shape)
            return (y, None), (zero_skipped(z, text_segments(segments)), None)
        if o_text is None:
            (projected,) = project_slices(kernels, (o, image.proj))
            return projected, (None, None)
        projected, (z, bias) = project_slices(kernels, (o, image.proj), (o_text, text.proj))
        return projected, (z.view(text_shape), bias)


class PooledEmbedder(nn.Module):
    """A two-layer perceptron on the pooled text embedding."""

    def __init__(self, pooled_dim: int, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(pooled_dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, pooled_dim] -> [N, D]."""
        return self.mlp(pooled.to(self.mlp[0].weight.dtype))


class MMDiT(nn.Module):
    """SD3 or SD3.5 with layers that can run over row prefixes.

    ``joint_blocks`` hold the two streams; ``pos_embed`` [1, S S, D] is the position table, cropped at its centre.
    ``gradient_checkpointing``: rows that are recorded keep the states between blocks only.
    """

    gradient_checkpointing = False

    def __init__(self, spec: MMDiTSpec):
        super().__init__()
        self.spec = spec
        self.x_embedder = PatchEmbed(spec.patch, spec.channels, spec.dim)
        self.t_embedder = TimestepEmbedder(spec.dim)
        self.y_embedder = PooledEmbedder(spec.pooled_dim, spec.dim)
        self.context_embedder = nn.Linear(spec.text_dim, spec.dim)
        self.joint_blocks = nn.ModuleList(JointBlock(spec, layer) for layer in range(spec.depth))
        self.final_layer = FinalLayer(spec.dim, spec.patch**2 * spec.out_channels)
        side = spec.position_size
        table = torch.empty(1, side**2, spec.dim)
        if not table.is_meta:  # a checkpoint brings its own
            base = (spec.height // spec.patch, spec.width // spec.patch)
            table.copy_(sincos_position_table(spec.dim, side, side, *base))
        self.register_buffer("pos_embed", table)

    def position_table(self, height: int, width: int) -> Tensor:
        """Position table [L, D] for a latent of ``height`` x ``width``: the centre of the full table."""
        spec = self.spec
        spec.check_size(height, width)
        rows, columns, side = height // spec.patch, width // spec.patch, spec.position_size
        top, left = (side - rows) // 2, (side - columns) // 2
        grid = self.pos_embed.view(side, side, spec.dim)
        return grid[top : top + rows, left : left + columns].reshape(-1, spec.dim)

    def norm_weights(self) -> Iterator[Tensor]:
        """Weights [K] of the norms of queries and keys, if any: a pair for each attention of each stream."""
        for block in self.joint_blocks if self.spec.qk_norm else ():
            for attention in filter(None, (block.x_block.attn, block.context_block.attn, block.x_block.attn2)):
                yield from attention.norm_weights

    @torch.no_grad()
    def largest_score(self, dtype: torch.dtype | None = None) -> float:
        """``s`` of the bound 2^s of exp(q . k / sqrt(K)) that the norms of queries and keys set, sqrt(K) max |w_q w_k| log2 e.

        With weights of ``dtype``, by default their own.  Infinite without such norms and without weights.  Reads the weights,
        so it waits for the device.
        """
        if not self.spec.qk_norm:
            return math.inf
        joint, second = [], []
        for block in self.joint_blocks:
            joint.append((*block.x_block.attn.norm_weights, *block.context_block.attn.norm_weights))
            if block.x_block.attn2 is not None:
                second.append(block.x_block.attn2.norm_weights)

        def largest(pairs: list[tuple[Tensor, ...]]) -> Tensor:
            weights = torch.stack([weight for pair in pairs for weight in pair])
            each = weights.to(dtype or weights.dtype).float().view(len(pairs), -1, 2, self.spec.head_dim)
            queries, keys = each.abs().unbind(2)  # [blocks, streams, K]
            return (queries[:, :, None] * keys[:, None]).max()

        found = torch.stack([largest(pairs) for pairs in (joint, second) if pairs]).max()
        return math.inf if found.is_meta else self.spec.head_dim**0.5 * math.log2(math.e) * found.item()

    # --- one plain forward ------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, time: Tensor, condition: TextCondition, skip_layers: tuple[int, ...] = ()) -> Tensor:
        """The velocity [B, C, H, W] in the dtype of the weights.

        x [B, C, H, W]; time [B] = 1000 sigma; ``skip_layers`` are bypassed by both streams.
        """
        height, width = x.shape[-2:]
        for layer in skip_layers:
            if not 0 <= layer < self.spec.depth:
                raise ValueError(f"layer {layer} does not exist: {self.spec.name} has layers 0 to {self.spec.depth - 1}")
        per_block, final = self.split_modulation(self.modulation(self.embed_condition(time, condition.pooled)))
        h = self.embed(x, self.position_table(height, width))
        c = self.embed_context(condition.context)
        for layer, block in enumerate(self.joint_blocks):
            if layer not in skip_layers:
                h, c = block(h, c, per_block[layer], DIFFERENTIABLE)
        shift, scale = self.final_shift_scale(final[:, None])
        patches = self.final_layer.linear(DIFFERENTIABLE.modulated_norm(h, shift, scale))
        return unpatchify(patches, self.spec.patch, height, width)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, C, H, W], positions [L, D] -> tokens [B, L, D]; the sum is rounded once, as diffusers does."""
        weight = self.x_embedder.proj.weight
        return (self.x_embedder(x.to(weight.dtype)) + positions).to(weight.dtype)

    def embed_context(self, context: Tensor) -> Tensor:
        """Token embeddings of prompts [N, M, text_dim] -> [N, M, D]; a run does this once."""
        return self.context_embedder(context.to(self.context_embedder.weight.dtype))

    # --- modulation: everything that depends on time and pooled text only ---------------------------------------------

    def embed_condition(self, time: Tensor, pooled: Tensor) -> Tensor:
        """time [..., ] broadcast against pooled [..., pooled_dim] -> [..., D], each embedded once.

        ``embed_condition(time[:, None], pooled)`` holds every pair.
        """
        return self.t_embedder(time.flatten()).unflatten(0, time.shape) + self.y_embedder(pooled)

    def modulation(self, condition: Tensor, out: Tensor | None = None) -> Tensor:
        """All modulation vectors of conditions [..., D] as [..., W], written to ``out`` when given.

        Linear by linear, so that filling a table needs no second table.
        """
        if out is None:
            out = condition.new_empty(*condition.shape[:-1], self.modulation_width)
        activated, start = F.silu(condition), 0
        for linear in self._modulation_linears():
            out[..., start : start + linear.out_features] = linear(activated)
            start += linear.out_features
        return out

    def _modulation_linears(self) -> list[nn.Linear]:
        streams = [stream for block in self.joint_blocks for stream in (block.x_block, block.context_block)]
        return [owner.adaLN_modulation[1] for owner in (*streams, self.final_layer)]

    def run_weights(self) -> Iterator[Tensor]:
        """What a run computes with once: the embedders of times and prompts, the modulation, the position table."""
        owners: list[nn.Module] = [self.t_embedder, self.y_embedder, self.context_embedder, *self._modulation_linears()]
        for owner in owners:
            yield from owner.parameters()
        yield self.pos_embed

    @property
    def modulation_sizes(self) -> list[int]:
        """Columns of the modulation that each block and then the final layer use."""
        spec = self.spec
        return [*(sum(spec.modulation_chunks(layer)) * spec.dim for layer in range(spec.depth)), 2 * spec.dim]

    def gate_columns(self) -> Tensor:
        """The block whose gate each column of the modulation is, [W] int64; ``depth`` for the columns that are no gates."""
        depth, columns = self.spec.depth, []
        for layer in range(depth):
            image, text = self.spec.modulation_chunks(layer)
            gates = {2, 5, 8, image + 2, image + 5} if image > 6 else {2, 5, image + 2, image + 5}
            columns += [layer if chunk in gates else depth for chunk in range(image + text)]
        return torch.tensor([*columns, depth, depth], device="cpu").repeat_interleave(self.spec.dim)

    @property
    def modulation_width(self) -> int:
        return sum(self.modulation_sizes)

    def split_modulation(self, modulation: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """[N, W] -> ([N, W_b] per block, [N, 2 D] of the final layer); views."""
        *per_block, final = modulation.split(self.modulation_sizes, dim=-1)
        return tuple(per_block), final

    def final_shift_scale(self, final: Tensor) -> tuple[Tensor, Tensor]:
        """[..., 2 D] -> (shift, scale), each [..., D], whatever the order in which the weights hold them."""
        first, second = final.chunk(2, dim=-1)
        return (second, first) if self.spec.scale_first else (first, second)
