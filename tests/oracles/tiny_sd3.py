"""A complete Stable Diffusion 3 pipeline of tiny random networks, built without any file or network access.

Every parameter is random and non-zero (fresh diffusers networks have zero gates and a zero head), so every branch differs.
"""

import torch
from tiny_models import randomize

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLIP_TOKENS, T5_TOKENS = 7, 6  # prompt lengths; a prompt is CLIP_TOKENS + T5_TOKENS context tokens
PIXELS = 2  # pixels per latent, along each side
ARCHITECTURES = {
    "sd3": {},
    "sd3.5-medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1, 2)},
    "sd3.5-large": {"qk_norm": "rms_norm"},
}


def tiny_transformer(kind: str = "sd3.5-medium", seed: int = 0, **changes):
    """An ``SD3Transformer2DModel`` of 6 blocks, 2 heads of 8, patch 2, 4 channels; ``kind`` is one of ARCHITECTURES."""
    from diffusers import SD3Transformer2DModel

    settings = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 6,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 20,
        "pos_embed_max_size": 12,
    }
    model = randomize(SD3Transformer2DModel(**(settings | ARCHITECTURES[kind] | changes)), seed)
    for name, parameter in model.named_parameters():
        if "norm_" in name and parameter.dim() == 1 and "linear" not in name:  # RMSNorm weights of queries and keys
            parameter.data += 1.5
    return model


def tiny_clip(width: int, seed: int, tokens: int = CLIP_TOKENS):
    """A CLIP tokenizer of single letters and a text encoder with a projection to ``width``."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=tokens)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    return tokenizer, randomize(CLIPTextModelWithProjection(config), seed)


def tiny_t5(width: int, seed: int):
    """A T5 tokenizer of single letters and an encoder of ``width``."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=64)
    config = T5Config(vocab_size=len(pieces), d_model=width, d_kv=width // 2, d_ff=2 * width, num_layers=1, num_heads=2)
    return tokenizer, randomize(T5EncoderModel(config), seed)


def tiny_vae(seed: int, channels: int = 4):
    """An autoencoder with 2 pixels per latent, and SD3's scaling and shift factors."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=channels,
        sample_size=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return vae.eval().requires_grad_(False)


def tiny_components(
    kind: str = "sd3.5-medium", seed: int = 0, scheduler=None, clip_tokens: int = CLIP_TOKENS, **changes
) -> dict:
    """The components of a tiny pipeline; ``changes`` go to the transformer."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    with torch.random.fork_rng():
        tokenizer, text_encoder = tiny_clip(8, seed + 1, clip_tokens)
        tokenizer_2, text_encoder_2 = tiny_clip(12, seed + 2, clip_tokens)
        tokenizer_3, text_encoder_3 = tiny_t5(24, seed + 3)
        return {
            "transformer": tiny_transformer(kind, seed, **changes),
            "scheduler": scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
            "vae": tiny_vae(seed, changes.get("in_channels", 4)),
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "text_encoder_2": text_encoder_2,
            "tokenizer_2": tokenizer_2,
            "text_encoder_3": text_encoder_3,
            "tokenizer_3": tokenizer_3,
        }


def tiny_pipeline(kind: str = "sd3.5-medium", seed: int = 0, scheduler=None, pipeline: str = "", **changes):
    """A ``StableDiffusion3Pipeline`` (``pipeline="Img2Img"``, ``"Inpaint"`` for the others), silent, in fp32 on the CPU.

    Call it with ``max_sequence_length=T5_TOKENS``; its native size is 16 x 16 pixels.
    """
    import diffusers

    components = tiny_components(kind, seed, scheduler, **changes)
    pipe = getattr(diffusers, f"StableDiffusion3{pipeline}Pipeline")(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_ip_adapter(transformer, seed: int = 0) -> None:
    """Give a tiny transformer the processors and the image projection of a loaded IP-Adapter: image tokens of 10 numbers."""
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    width = transformer.inner_dim
    with torch.random.fork_rng():
        transformer.image_proj = randomize(
            IPAdapterTimeImageProjection(
                embed_dim=10, output_dim=width, hidden_dim=12, depth=1, dim_head=6, heads=2, num_queries=3, timestep_in_dim=8
            ),
            seed,
        )
        processors = {}
        for index, name in enumerate(transformer.attn_processors):
            processor = SD3IPAdapterJointAttnProcessor2_0(
                width, width, transformer.config.attention_head_dim, timesteps_emb_dim=12
            )
            processors[name] = randomize(processor, seed + index)
        transformer.set_attn_processor(processors)
