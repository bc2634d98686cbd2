"""diffusers' own SD3 transformers at full depth and tiny width, with every parameter random: the reference of our MMDiT."""

from dataclasses import dataclass

import torch
from tiny_models import randomize
from torch import Tensor

TEXT_DIM, POOLED_DIM, TEXT_TOKENS, CHANNELS = 24, 20, 7, 4
ARCHITECTURES = {
    "sd3-medium": {"num_layers": 24, "num_attention_heads": 3, "attention_head_dim": 16},
    "sd3.5-medium": {
        "num_layers": 24,
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
        "pos_embed_max_size": 30,
    },
    "sd3.5-large": {"num_layers": 38, "num_attention_heads": 2, "attention_head_dim": 20, "qk_norm": "rms_norm"},
}


def diffusers_sd3(architecture: str = "sd3-medium", seed: int = 0, **changes):
    """An ``SD3Transformer2DModel`` in eval mode, fp32; the native latent is 16 x 16."""
    from diffusers import SD3Transformer2DModel

    settings = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "joint_attention_dim": TEXT_DIM,
        "pooled_projection_dim": POOLED_DIM,
        "pos_embed_max_size": 14,
    }
    settings |= ARCHITECTURES[architecture] | changes
    settings["caption_projection_dim"] = settings["num_attention_heads"] * settings["attention_head_dim"]
    model = randomize(SD3Transformer2DModel(**settings), seed)
    for block in model.transformer_blocks:  # around one, as trained: near zero every attention would be the mean
        for attention in filter(None, (block.attn, block.attn2)):
            for norm in (attention.norm_q, attention.norm_k, attention.norm_added_q, attention.norm_added_k):
                if norm is not None:
                    norm.weight.data += 1
    return model


@dataclass(frozen=True)
class Inputs:
    """A latent, and the embeddings of a prompt and of a negative prompt for each of its samples."""

    x: Tensor
    time: Tensor
    contexts: tuple[Tensor, Tensor]
    pooled: tuple[Tensor, Tensor]

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The same in another dtype; times stay fp32."""
        contexts, pooled = (tuple(value.to(dtype) for value in pair) for pair in (self.contexts, self.pooled))
        return Inputs(self.x.to(dtype), self.time, contexts, pooled)


def sd3_inputs(seed: int, height: int = 16, width: int = 16, batch: int = 2) -> Inputs:
    """Random inputs; every sample has its own time, prompt and negative prompt."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Inputs(
        draw(batch, CHANNELS, height, width),
        1000 * torch.rand(batch, generator=generator),
        (draw(batch, TEXT_TOKENS, TEXT_DIM), draw(batch, TEXT_TOKENS, TEXT_DIM)),
        (draw(batch, POOLED_DIM), draw(batch, POOLED_DIM)),
    )


@torch.no_grad()
def reference(module, inputs: Inputs, condition: int = 0, skip_layers: tuple[int, ...] = ()) -> Tensor:
    """The output of diffusers' module for the prompts (0) or the negative prompts (1)."""
    context, pooled = inputs.contexts[condition], inputs.pooled[condition]
    return module(inputs.x, context, pooled, inputs.time, skip_layers=list(skip_layers) or None, return_dict=False)[0]
