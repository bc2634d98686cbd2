"""An MMDiT's forward as the papers write it, alone and in fp64: every attention by a softmax over whole scores.

Normalized attention guidance is two whole attentions, one with each text, combined.  It shares with the engine the network's
modules only.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.models.mmdit import JointBlock, MMDiT, StreamAttention, TextCondition


@dataclass(frozen=True)
class Nag:
    """The negative prompts, and scale, tau and alpha of every sample, each [B]."""

    negative: TextCondition
    scale: Tensor
    tau: Tensor
    alpha: Tensor


def guided(positive: Tensor, negative: Tensor, nag: Nag) -> Tensor:
    """[B, L, D]: with the norms of the published code."""
    scale, tau, alpha = (number[:, None, None] for number in (nag.scale, nag.tau, nag.alpha))
    g = scale * positive - (scale - 1) * negative
    ratio = g.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True)
    return alpha * g * torch.minimum(ratio, tau) / ratio + (1 - alpha) * positive


def heads_of(attention: StreamAttention, x: Tensor, heads: int) -> list[Tensor]:
    """q, k, v [B, H, T, K], q and k normalised where the attention has norms."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    if attention.ln_q is not None:
        q, k = attention.ln_q(q), attention.ln_k(k)
    return [q, k, v]


def attend(image: list[Tensor], text: list[Tensor] | None, kind: str) -> tuple[Tensor, Tensor | None]:
    """The outputs of image and text tokens [B, T, D] of one joint attention, which may be perturbed."""
    tokens, streams = image[0].shape[2], [image] if text is None else [image, text]
    q, k, v = (torch.cat([stream[i] for stream in streams], dim=2) for i in range(3))
    if kind == "attention_blur":
        q = torch.cat([q[:, :, :tokens].mean(dim=2, keepdim=True).expand(-1, -1, tokens, -1), q[:, :, tokens:]], dim=2)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if kind == "attention_identity_image":
        apart = ~torch.eye(tokens, dtype=torch.bool)
        scores[:, :, :tokens, :tokens] = scores[:, :, :tokens, :tokens].masked_fill(apart, -math.inf)
    out = v if kind == "attention_identity" else scores.softmax(dim=-1) @ v
    out = out.transpose(1, 2).flatten(2)
    if kind == "attention_shuffle":
        order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
        out = torch.cat([out[:, :tokens][:, order], out[:, tokens:]], dim=1)
    return out[:, :tokens], None if text is None else out[:, tokens:]


def joint_block(block: JointBlock, h: Tensor, texts: list[Tensor], times: list[Tensor], kind: str, nag: Nag | None, last: bool):
    """One block over an image and one text, or two; ``times`` [B, D] are the embedded time and pooled text of each."""
    vectors = [
        [stream.adaLN_modulation(time)[:, None].chunk(count, dim=-1) for stream, count in each]
        for time in times
        for each in [((block.x_block, block.image_chunks), (block.context_block, block.text_chunks))]
    ]
    image = vectors[0][0]

    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def text_norm(c: Tensor, own) -> Tensor:
        shift, scale = own[:2]
        return norm(c, scale, shift) if len(own) == 2 and block.scale_first else norm(c, shift, scale)

    own_heads = heads_of(block.x_block.attn, norm(h, image[0], image[1]), block.heads)
    text_heads = [
        heads_of(block.context_block.attn, text_norm(c, own), block.heads) for c, (_, own) in zip(texts, vectors, strict=True)
    ]
    outputs = [attend(own_heads, text, kind) for text in text_heads]
    attended = outputs[0][0] if nag is None else guided(outputs[0][0], outputs[1][0], nag)
    active = kind != "attention_skip"
    change = image[2] * block.x_block.attn.proj(attended) if active else 0
    if block.x_block.attn2 is not None and active:
        alone, _ = attend(heads_of(block.x_block.attn2, norm(h, image[6], image[7]), block.heads), None, kind)
        change = change + image[8] * block.x_block.attn2.proj(alone)
    h = h + change
    h = h + image[5] * mlp(block.x_block.mlp, norm(h, image[3], image[4]))
    if not last:
        after = []
        for c, (_, own), (_, z) in zip(texts, vectors, outputs, strict=True):
            c = c + own[2] * block.context_block.attn.proj(z) if active else c
            after.append(c + own[5] * mlp(block.context_block.mlp, norm(c, own[3], own[4])))
        texts = after
    return h, texts


def mlp(module, x: Tensor) -> Tensor:
    return module.fc2(F.gelu(module.fc1(x), approximate="tanh"))


@torch.no_grad()
def naive_velocity(
    model: MMDiT,
    x: Tensor,
    sigma: float,
    condition: TextCondition,
    kind: str = "",
    layers: tuple[int, ...] = (),
    nag: Nag | None = None,
) -> Tensor:
    """The output of one branch [B, C, H, W]; ``kind`` perturbs ``layers``, both streams bypass them for ``skip``."""
    conditions = [condition] if nag is None else [condition, nag.negative]
    embedded = [model.embed_condition(torch.full((len(x),), 1000 * sigma).double(), each.pooled) for each in conditions]
    h = model.x_embedder(x) + model.position_table(*x.shape[2:])
    texts = [model.context_embedder(each.context) for each in conditions]
    for layer, block in enumerate(model.joint_blocks):
        own = kind if layer in layers else ""
        if own != "skip":
            h, texts = joint_block(block, h, texts, embedded, own, nag, layer == model.spec.depth - 1)
    first, second = model.final_layer.adaLN_modulation(embedded[0])[:, None].chunk(2, dim=-1)
    shift, scale = (second, first) if model.spec.scale_first else (first, second)
    patches = model.final_layer.linear(F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)
    p, (rows, columns) = model.spec.patch, (side // model.spec.patch for side in x.shape[2:])
    return patches.view(len(x), rows, columns, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
