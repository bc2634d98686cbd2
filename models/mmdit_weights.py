"""The key layouts of SD3 and SD3.5 checkpoints: diffusers' ``SD3Transformer2DModel`` and the published single file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint_files import Checkpoint, model_name, read_json
from .layout import Hints, Layout
from .mmdit_diffusers import diffusers_sources
from .mmdit_spec import MMDiTSpec
from .official_layout import mlp_ratio, shape_of

CLASS = "SD3Transformer2DModel"
NATIVE_SIZE = 128  # latent side of every published SD3; a file does not tell it
HEAD_DIM = 64  # of every published SD3; a file tells it only where queries are normalised
_FIRST_TEXT_QKV = "joint_blocks.0.context_block.attn.qkv.weight"


def is_mmdit(checkpoint: Checkpoint) -> bool:
    """Whether the tensor names are those of an SD3, in either layout."""
    known = (*diffusers_sources(_FIRST_TEXT_QKV), _FIRST_TEXT_QKV)
    return any(key in checkpoint.tensors for key in known)


def mmdit_layout(checkpoint: Checkpoint, hints: Hints) -> Layout:
    """The network and its keys; raises ``ValueError`` if the checkpoint does not describe one completely."""
    hints.refuse(("family", "exit_layer"), f"{checkpoint.path} is an SD3")
    if diffusers_sources(_FIRST_TEXT_QKV)[0] in checkpoint.tensors:
        hints.refuse(("heads",), f"the config.json beside {checkpoint.path} states the network")
        return Layout(_configured_spec(checkpoint), diffusers_sources)
    return Layout(_measured_spec(checkpoint, hints), lambda name: (name,))


def _configured_spec(checkpoint: Checkpoint) -> MMDiTSpec:
    """The spec in the ``config.json`` beside diffusers' weights."""
    path = checkpoint.path.parent / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{checkpoint.path} has diffusers' tensor names, but there is no config.json beside it")
    config = read_json(path)
    if config.get("_class_name", CLASS) != CLASS:
        raise ValueError(f"{path} describes a {config['_class_name']}; its weights are those of an {CLASS}")
    return _spec_of(config, path, checkpoint.name)


def folder_spec(folder: Path) -> MMDiTSpec | None:
    """The spec of a saved SD3 pipeline or transformer, from its ``config.json`` alone; None if the folder holds none."""
    path = (folder / "transformer" if (folder / "transformer").is_dir() else folder) / "config.json"
    config = read_json(path) if path.is_file() else {}
    return _spec_of(config, path, model_name(folder)) if config.get("_class_name") == CLASS else None


def _spec_of(config: Mapping[str, Any], path: Path, name: str) -> MMDiTSpec:
    try:
        return MMDiTSpec.from_config(config, name)
    except ValueError as error:
        raise ValueError(f"{path} does not describe an SD3: {error}") from error


def _measured_spec(checkpoint: Checkpoint, hints: Hints) -> MMDiTSpec:
    """The spec that the shapes of a published file tell."""
    tensors = checkpoint.tensors
    dim, channels, patch, _ = shape_of(checkpoint, "x_embedder.proj.weight", 4)
    blocks = [key.split(".") for key in tensors if key.startswith("joint_blocks.")]
    depth = 1 + max(int(parts[1]) for parts in blocks if parts[1].isdigit())
    outputs, _ = shape_of(checkpoint, "final_layer.linear.weight", 2)
    _, text_dim = shape_of(checkpoint, "context_embedder.weight", 2)
    _, pooled_dim = shape_of(checkpoint, "y_embedder.mlp.0.weight", 2)
    hidden, _ = shape_of(checkpoint, "joint_blocks.0.x_block.mlp.fc1.weight", 2)
    _, positions, _ = shape_of(checkpoint, "pos_embed", 3)
    side = math.isqrt(positions)
    if side**2 != positions or outputs % patch**2:
        raise ValueError(
            f"{checkpoint.path} has {positions} positions and {outputs} outputs; expected a square number and a multiple of "
            f"{patch}^2"
        )
    native = min(NATIVE_SIZE, patch * side)
    norm = "joint_blocks.0.x_block.attn.ln_q.weight"
    return MMDiTSpec(
        name=checkpoint.name,
        channels=channels,
        height=native,
        width=native,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=_heads(checkpoint, norm, hints, dim),
        mlp_ratio=mlp_ratio(hidden, dim),
        out_channels=outputs // patch**2,
        text_dim=text_dim,
        pooled_dim=pooled_dim,
        position_size=side,
        dual_layers=tuple({int(parts[1]) for parts in blocks if parts[2:4] == ["x_block", "attn2"] and parts[1].isdigit()}),
        qk_norm=norm in tensors,
    )


def _heads(checkpoint: Checkpoint, norm: str, hints: Hints, dim: int) -> int:
    """Heads from the norm of each head, from the caller, or of the published 64 channels."""
    if norm in checkpoint.tensors:
        hints.refuse(("heads",), f"the norms in {checkpoint.path} state the head width")
        return dim // shape_of(checkpoint, norm, 1)[0]
    if hints.heads is None and dim % HEAD_DIM:
        raise ValueError(f"{checkpoint.path} has width {dim}, not a multiple of {HEAD_DIM}: give the number of attention heads")
    return hints.heads or dim // HEAD_DIM
