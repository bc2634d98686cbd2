"""The key layout of diffusers' ``DiTTransformer2DModel``, described by the ``config.json`` beside it."""

from collections.abc import Mapping
from typing import Any

import torch

from .checkpoint_files import Checkpoint, read_json
from .layout import Hints, Layout
from .parameterization import Parameterization
from .sizes import FAMILIES
from .spec import SiTSpec

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the second as first published
FIXED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
SCHEDULE = {
    "num_train_timesteps": Parameterization.TRAIN_STEPS,
    "beta_start": Parameterization.BETA_START,
    "beta_end": Parameterization.BETA_END,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "trained_betas": None,
}
_NAMES = {
    "x_embedder.proj": ("pos_embed.proj",),
    "final_layer.adaLN_modulation.1": ("proj_out_1",),
    "final_layer.linear": ("proj_out_2",),
}
_BLOCK_NAMES = {
    "adaLN_modulation.1": ("norm1.linear",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
_EMBEDDER_NAMES = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}


def dit_sources(name: str) -> tuple[str, ...]:
    """Keys in diffusers of one of our parameters; every block of diffusers' DiT holds its own embedder."""
    stem, _, leaf = name.rpartition(".")
    part, _, rest = stem.partition(".")
    index, _, inner = rest.partition(".")
    if part == "blocks":
        return tuple(f"transformer_blocks.{index}.{key}.{leaf}" for key in _BLOCK_NAMES[inner])
    if part == "embedders":
        return (f"transformer_blocks.{index}.norm1.emb.{_EMBEDDER_NAMES[inner]}.{leaf}",)
    return tuple(f"{key}.{leaf}" for key in _NAMES[stem])


def diffusers_layout(checkpoint: Checkpoint, hints: Hints) -> Layout:
    """Sizes from the configuration; embedders that are equal in every block become one."""
    config = _config(checkpoint)
    hints.refuse(("heads", "exit_layer"), f"the config.json beside {checkpoint.path} states the network")
    if hints.family not in (None, "dit"):
        raise ValueError(f"family={hints.family!r} does not apply: {checkpoint.path} is diffusers' DiT")
    return dit_layout(checkpoint, config, f"the config.json beside {checkpoint.path}")


def dit_layout(checkpoint: Checkpoint, config: Mapping[str, Any], where: str) -> Layout:
    """As :func:`diffusers_layout`, of a configuration that was read from ``where``."""
    _check_config(config, where)
    depth = config["num_layers"]
    copies = _equal_embedders(checkpoint, depth)
    family = FAMILIES["dit"]
    try:
        spec = SiTSpec(
            name=checkpoint.name,
            channels=config["in_channels"],
            height=config["sample_size"],
            width=config["sample_size"],
            patch=config["patch_size"],
            dim=config["num_attention_heads"] * config["attention_head_dim"],
            depth=depth,
            heads=config["num_attention_heads"],
            prediction=family.prediction,
            time=family.time,
            out_channels=config.get("out_channels") or config["in_channels"],
            num_classes=config["num_embeds_ada_norm"],
            frequency_shift=1.0,
            mlp_norm_eps=config.get("norm_eps", 1e-5),
            per_block_embedding=copies is None,
        )
    except ValueError as error:
        raise ValueError(f"{where} does not describe a DiT: {error}") from error
    return Layout(spec, dit_sources, dict.fromkeys(copies or (), "equal to that of block 0"))


def _equal_embedders(checkpoint: Checkpoint, depth: int) -> list[str] | None:
    """Keys of the embedders of blocks 1 and up if they all equal block 0's, else None."""
    tensors, copies = checkpoint.tensors, []
    first = "transformer_blocks.0.norm1.emb."
    for key in [key for key in tensors if key.startswith(first)]:
        for block in range(1, depth):
            other = f"transformer_blocks.{block}.norm1.emb.{key.removeprefix(first)}"
            if other not in tensors or not torch.equal(tensors[key], tensors[other]):
                return None
            copies.append(other)
    return copies


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checked ``config.json`` beside the weights; the pipeline's scheduler must be the one DiT was trained with."""
    folder = checkpoint.path.parent
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{checkpoint.path} has diffusers' tensor names, but there is no config.json beside it")
    config = read_json(path)
    kind = config.get("_class_name", CLASSES[0])
    if kind not in CLASSES:
        raise ValueError(f"{path} describes a {kind}; the diffusers network known here is {CLASSES[0]}")
    _check_config(config, str(path))
    scheduler = folder.parent / "scheduler" / "scheduler_config.json"
    if folder.name == "transformer" and scheduler.is_file():
        stated = read_json(scheduler)
        for name, wanted in SCHEDULE.items():
            if stated.get(name, wanted) != wanted:
                raise ValueError(f"{scheduler} has {name} {stated[name]!r}; a DiT must have {wanted!r}")
    return config


def _check_config(config: Mapping[str, Any], where: str) -> None:
    for name, wanted in FIXED.items():
        if config.get(name, wanted) != wanted:
            raise ValueError(f"{where} has {name} {config[name]!r}; a DiT must have {wanted!r}")
    needed = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "sample_size", "patch_size")
    for name in (*needed, "num_embeds_ada_norm"):
        if type(config.get(name)) is not int:
            raise ValueError(f"{where} needs an integer {name}, got {config.get(name)!r}")
