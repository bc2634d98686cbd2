"""Networks written back in the layouts that other code reads: the official one of DiT, SiT and REPA, and diffusers' DiT."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .attention_kind import FULL_ATTENTION
from .diffusers_layout import FIXED, dit_sources
from .official_layout import EXIT_SETTING, official_name, path_setting
from .sit import SiT
from .sizes import FAMILIES
from .spec import SiTSpec


def official_family(spec: SiTSpec) -> str:
    """The family whose conventions ``spec`` has; ``ValueError`` where the official layout cannot hold such a network."""
    reasons = {
        "superclasses": spec.parents,
        "an embedder in every block": spec.per_block_embedding,
        "several early-exit heads": len(spec.exits) > 1,
        "affine norms": spec.affine_norms,
        "another attention than the full one": spec.attention != FULL_ATTENTION,
        "other numerics than the official code": (spec.frequency_shift, spec.mlp_norm_eps) != (0.0, 1e-6),
        "no square grid": spec.height != spec.width,
    }
    for what, is_so in reasons.items():
        if is_so:
            raise ValueError(f"{spec.name} has {what}, which the official layout cannot hold")
    for name, family in FAMILIES.items():
        if (family.prediction, family.time) == (spec.prediction, spec.time):
            return name
    raise ValueError(f"{spec.name} predicts {spec.prediction} at {spec.time}, which no official family does")


def official_tensors(model: SiT) -> dict[str, Tensor]:
    """The tensors of ``model`` under their official names, and the position table [1, L, D] that official code stores."""
    spec = model.spec
    official_family(spec)
    tensors = {official_name(name, spec.exits): value.detach() for name, value in model.state_dict().items()}
    return tensors | {"pos_embed": model.position_table(spec.height, spec.width)[None].to(next(iter(tensors.values())))}


def write_official(model: SiT, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a torch file as the official training code does: the weights under ``ema``, what trained them under ``args``.

    It holds tensors and plain values only.  ``settings`` are JSON values.  Raises ``ValueError`` as :func:`official_family`.
    """
    args = dict(settings) | path_setting(model.spec, official_family(model.spec))
    args |= {EXIT_SETTING: model.spec.exits[0]} if model.spec.exits else {}
    torch.save({"ema": official_tensors(model), "args": args}, path)


def write_diffusers(model: SiT, folder: Path) -> None:
    """Write ``folder`` as diffusers' ``DiTTransformer2DModel`` saves itself; every block gets a copy of a shared embedder.

    Raises ``ValueError`` for a network that has not the conventions of diffusers' DiT.
    """
    from diffusers import DiTTransformer2DModel

    spec, dtype = model.spec, next(model.parameters()).dtype
    _check_diffusers(spec)
    network = DiTTransformer2DModel(
        num_attention_heads=spec.heads,
        attention_head_dim=spec.head_dim,
        in_channels=spec.channels,
        out_channels=spec.out_channels,
        num_layers=spec.depth,
        sample_size=spec.height,
        patch_size=spec.patch,
        num_embeds_ada_norm=spec.num_classes,
        norm_eps=spec.mlp_norm_eps,
        **FIXED,
    )
    network.load_state_dict(diffusers_tensors(model), strict=False)  # its position table is computed
    network.to(dtype).save_pretrained(folder)


def diffusers_tensors(model: SiT) -> dict[str, Tensor]:
    """The tensors of ``model`` under diffusers' names, those of queries, keys and values apart."""
    spec = model.spec
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        names = [name]
        if name.startswith("embedders.0.") and not spec.per_block_embedding:
            names = [name.replace("embedders.0.", f"embedders.{block}.", 1) for block in range(spec.depth)]
        for own in names:
            keys = dit_sources(own)
            tensors |= dict(zip(keys, value.detach().chunk(len(keys)), strict=True))
    return tensors


def _check_diffusers(spec: SiTSpec) -> None:
    ours = {
        "prediction": (spec.prediction, "epsilon"),
        "frequency shift": (spec.frequency_shift, 1.0),
        "superclasses": (spec.parents, ()),
        "affine norms": (spec.affine_norms, False),
        "attention": (spec.attention, FULL_ATTENTION),
        "early-exit heads": (spec.exits, ()),
        "norm of queries and keys": (spec.qk_norm, False),
        "width": (spec.width, spec.height),
    }
    for name, (found, wanted) in ours.items():
        if found != wanted:
            raise ValueError(f"{spec.name} has {name} {found!r}; diffusers' DiT has {wanted!r}")
