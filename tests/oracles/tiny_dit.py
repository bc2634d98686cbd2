"""A diffusers ``DiTPipeline`` of tiny sizes: random weights of the true layout, with a VAE of two pixels per latent."""

import torch
from tiny_sd3 import tiny_vae


def tiny_transformer(seed: int, classes: int = 7, layers: int = 3, channels: int = 4):
    """diffusers' DiT with every parameter random; the output has a learned variance beside each channel."""
    from diffusers import DiTTransformer2DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": layers, "sample_size": 6, "patch_size": 2}
    model = DiTTransformer2DModel(**sizes, in_channels=channels, out_channels=2 * channels, num_embeds_ada_norm=classes)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.requires_grad_(False).named_parameters():
        fan_in = 25 if parameter.dim() == 1 else 1 if "embedding_table" in name else parameter[0].numel()
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    for block in model.transformer_blocks[1:]:  # as published: one embedder
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model.eval()


def dit_vae(seed: int, channels: int = 4):
    """A VAE of DiT's kind: a scaling factor, no shift."""
    vae = tiny_vae(seed, channels)
    vae.register_to_config(scaling_factor=0.18215, shift_factor=None)
    return vae


def tiny_dit_pipeline(seed: int = 0, classes: int = 7, scheduler=None, layers: int = 3, vae_channels: int = 4):
    """A ``DiTPipeline``; ``scheduler`` is a diffusers scheduler, by default the DDIM of DiT's training chain."""
    from diffusers import DDIMScheduler, DiTPipeline

    scheduler = scheduler or DDIMScheduler(clip_sample=False)
    return DiTPipeline(tiny_transformer(seed, classes, layers), dit_vae(seed + 1, vae_channels), scheduler)
