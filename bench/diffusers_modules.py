"""diffusers' transformers of the benchmark's sizes: with random weights, or with those of one of our networks."""

import torch
from torch import Tensor, nn

from segue.models.diffusers_layout import dit_sources
from segue.models.mmdit import MMDiT
from segue.models.mmdit_diffusers import diffusers_sources
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.sit import SiT
from segue.models.spec import ModelSpec, SiTSpec

from .cases import SEED, randomize


def diffusers_module(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """``SD3Transformer2DModel`` or ``DiTTransformer2DModel`` of the sizes of ``spec`` with random weights.

    Raises ``ImportError`` without diffusers.
    """
    return _cast(randomize(_empty(spec, device), SEED), dtype)


def with_weights_of(model: MMDiT | SiT) -> nn.Module:
    """A diffusers module that computes what ``model`` computes, on its device and in its dtype; early-exit heads are left out.

    Raises ``ImportError`` without diffusers, ``ValueError`` for a network that diffusers does not have.
    """
    spec, weight = model.spec, next(model.parameters())
    tensors = _mmdit_tensors(model) if isinstance(model, MMDiT) else _dit_tensors(model)
    module = _cast(_empty(spec, weight.device), weight.dtype)
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    own = set(dict(module.named_parameters()))
    if unexpected or own & set(missing):
        raise ValueError(f"the weights of {spec.name} do not fit diffusers' network: {[*unexpected, *(own & set(missing))][0]}")
    if isinstance(spec, SiTSpec):
        _as_sit(module, model)
    return module.eval().requires_grad_(False)


def compile_blocks(module: nn.Module) -> None:
    """Compile every transformer block (regional compilation), once for every shape."""
    for block in module.transformer_blocks:
        block.compile(dynamic=False)


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return module if dtype == torch.float32 else module.to(dtype)  # diffusers warns at every cast


def _empty(spec: ModelSpec, device: torch.device) -> nn.Module:
    from diffusers import DiTTransformer2DModel, SD3Transformer2DModel

    sizes = {
        "num_attention_heads": spec.heads,
        "attention_head_dim": spec.head_dim,
        "in_channels": spec.channels,
        "out_channels": spec.out_channels,
        "num_layers": spec.depth,
        "sample_size": spec.height,
        "patch_size": spec.patch,
    }
    with torch.device(device):
        if isinstance(spec, MMDiTSpec):
            return SD3Transformer2DModel(
                **sizes,
                joint_attention_dim=spec.text_dim,
                caption_projection_dim=spec.dim,
                pooled_projection_dim=spec.pooled_dim,
                pos_embed_max_size=spec.position_size,
                dual_attention_layers=spec.dual_layers,
                qk_norm="rms_norm" if spec.qk_norm else None,
            )
        labels = spec.null_label  # classes and superclasses; diffusers adds the null label
        return DiTTransformer2DModel(**sizes, num_embeds_ada_norm=labels, norm_eps=spec.mlp_norm_eps)


def _mmdit_tensors(model: MMDiT) -> dict[str, Tensor]:
    spec, tensors = model.spec, {}
    last = ("final_layer.adaLN_modulation.", f"joint_blocks.{spec.depth - 1}.context_block.adaLN_modulation.")
    for name, tensor in model.state_dict().items():
        if name.startswith(last) and not spec.scale_first:
            tensor = torch.cat(tensor.chunk(2)[::-1])  # (shift, scale); diffusers has the scale first
        sources = diffusers_sources(name)
        tensors |= zip(sources, tensor.chunk(len(sources)), strict=True)
    return tensors


def _dit_tensors(model: SiT) -> dict[str, Tensor]:
    spec = model.spec
    if spec.qk_norm or spec.per_block_embedding:
        raise ValueError(f"{spec.name} has query norms or an embedder per block, which this DiT of diffusers has not")
    if spec.height != spec.width:
        raise ValueError(f"diffusers' DiT draws squares, {spec.name} draws {spec.height} x {spec.width}")
    tensors, embedder = {}, "embedders.0.y_embedder."
    for name, tensor in model.state_dict().items():
        if not name.startswith(("exit_layers.", embedder)):
            sources = dit_sources(name)
            tensors |= zip(sources, tensor.chunk(len(sources)), strict=True)
    labels = torch.arange(spec.null_label + 1, device=next(model.parameters()).device)
    table = model.embedders[0].y_embedder(labels)  # a tiered embedding becomes a flat one
    tensors |= dict.fromkeys(dit_sources(f"{embedder}embedding_table.weight"), table)
    first = "transformer_blocks.0.norm1.emb."
    shared = {key.removeprefix(first): tensor for key, tensor in tensors.items() if key.startswith(first)}
    for block in range(1, spec.depth):
        tensors |= {f"transformer_blocks.{block}.norm1.emb.{key}": tensor for key, tensor in shared.items()}
    return tensors


@torch.no_grad()
def _as_sit(module: nn.Module, model: SiT) -> None:
    """The two things of a DiT that are not in its tensors: frequencies of the time embedding, and the position table."""
    for block in module.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = model.spec.frequency_shift
    positions = model.positions(model.spec.height, model.spec.width)
    module.pos_embed.pos_embed = positions.to(module.pos_embed.proj.weight)[None].clone()
