"""The key layout of the official DiT, SiT, REPA and SGG checkpoints, which share their tensor names.

The file tells every size but the attention heads, and not what the network predicts.
"""

import math

import torch
from torch import Tensor

from .checkpoint_files import Checkpoint
from .layers import sincos_position_table
from .layout import Hints, Layout
from .projectors import TRAINING_ONLY, projector_keys
from .sizes import FAMILIES, SIZES
from .spec import NoisePath, SiTSpec

# how far a stored table may lie from the exact one: the EMA of a constant drifts by rounding, 1.6e-4 at decay 0.9999 in fp32,
# so stored tables are used as they are; bfloat16 rounds by 2e-3
POSITION_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-3, torch.bfloat16: 4e-3}
PUBLISHED_EXIT = 4  # blocks before the branch head in the published SGG scripts (arXiv 2603.20584)
EXIT_SETTING = "weak_layer"  # the training argument of SGG's code that says so; -1: no head
# what the training arguments must say where they are kept: other predictions are other models
TRAINED_AS = {"repa": {"prediction": "v"}, "sit": {"prediction": "velocity"}, "dit": {}}
PATH_SETTING = "path_type"
PATHS: dict[str, dict[str, NoisePath]] = {  # what the training code of each family calls its paths, in any case
    "repa": {"linear": "linear", "cosine": "cosine"},
    "sit": {"Linear": "linear", "GVP": "cosine"},
    "dit": {},
}


def official_layout(checkpoint: Checkpoint, hints: Hints) -> Layout:
    """Sizes from the shapes, conventions from the family; raises ``ValueError`` if the file does not tell."""
    tensors = checkpoint.tensors
    family_name = _family(checkpoint, hints)
    family = FAMILIES[family_name]
    _check_training(checkpoint, family_name)
    dim, channels, patch, _ = shape_of(checkpoint, "x_embedder.proj.weight", 4)
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    outputs, _ = shape_of(checkpoint, "final_layer.linear.weight", 2)
    rows, _ = shape_of(checkpoint, "y_embedder.embedding_table.weight", 2)
    hidden, _ = shape_of(checkpoint, "blocks.0.mlp.fc1.weight", 2)
    if outputs % patch**2:
        raise ValueError(f"final_layer.linear.weight in {checkpoint.path} has {outputs} rows, not a multiple of {patch}^2")
    grid = _position_grid(checkpoint, dim)
    exits = _exits(checkpoint, hints)
    spec = SiTSpec(
        name=checkpoint.name,
        channels=channels,
        height=patch * grid,
        width=patch * grid,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=_heads(checkpoint, hints, dim),
        prediction=family.prediction,
        time=family.time,
        mlp_ratio=mlp_ratio(hidden, dim),
        out_channels=outputs // patch**2,
        exits=exits,
        num_classes=rows - 1,  # the last row is the null label
        qk_norm="blocks.0.attn.q_norm.weight" in tensors,
        path=_path(checkpoint, family_name),
    )
    ignored = dict.fromkeys(projector_keys(tensors) if family_name == "repa" else (), TRAINING_ONLY)
    return Layout(spec, lambda name: (official_name(name, exits),), ignored, positions="pos_embed")


def official_name(name: str, exits: tuple[int, ...]) -> str:
    """The official name of one of our parameters; the early-exit head is ``mid_layer``."""
    for layer in exits:
        name = name.replace(f"exit_layers.{layer}.", "mid_layer.")
    return name.removeprefix("embedders.0.")


def _family(checkpoint: Checkpoint, hints: Hints) -> str:
    """The given family, or ``repa`` where only its training code could have written the file."""
    if hints.family is not None:
        return hints.family
    marks = any(key.startswith(("projectors.", "mid_layer.")) for key in checkpoint.tensors)
    if marks or "steps" in checkpoint.settings:
        return "repa"
    raise ValueError(
        f"the tensor names in {checkpoint.path} are those of DiT, SiT and REPA alike; give family='dit' (noise prediction), "
        "'sit' (velocity, time 1 is data) or 'repa' (velocity, time 1 is noise)"
    )


def _check_training(checkpoint: Checkpoint, family: str) -> None:
    for name, wanted in TRAINED_AS[family].items():
        found = checkpoint.settings.get(name, wanted)
        if str(found).lower() != wanted:
            raise ValueError(f"{checkpoint.path} was trained with {name} {found!r}; a {family} model must have {wanted!r}")


def _path(checkpoint: Checkpoint, family: str) -> NoisePath:
    """The path of the training arguments; linear where none are kept, as in all published files."""
    found, known = checkpoint.settings.get(PATH_SETTING), PATHS[family]
    if found is None or not known:
        return "linear"
    for name, path in known.items():
        if str(found).lower() == name.lower():
            return path
    raise ValueError(
        f"{checkpoint.path} was trained with {PATH_SETTING} {found!r}; a {family} model must have {' or '.join(known)}"
    )


def path_setting(spec: SiTSpec, family: str) -> dict[str, str]:
    """The training argument that tells the path of ``spec`` to the code of its family; none where there is one path."""
    names = {path: name for name, path in PATHS[family].items()}
    return {PATH_SETTING: names[spec.path]} if names else {}


def _heads(checkpoint: Checkpoint, hints: Hints, dim: int) -> int:
    """Heads from the caller, from the norm of each head, or from the table of published sizes."""
    if hints.heads is not None:
        return hints.heads
    if "blocks.0.attn.q_norm.weight" in checkpoint.tensors:
        return dim // shape_of(checkpoint, "blocks.0.attn.q_norm.weight", 1)[0]
    known = {size.dim: size.heads for size in SIZES.values()}
    if dim not in known:
        raise ValueError(f"{checkpoint.path} has width {dim}, which is no published size: give the number of attention heads")
    return known[dim]


def _exits(checkpoint: Checkpoint, hints: Hints) -> tuple[int, ...]:
    """Where SGG's branch head ``mid_layer`` reads: after the caller's block, else as the training arguments say.

    The head is a second ``final_layer`` under the same condition.
    """
    if not any(key.startswith("mid_layer.") for key in checkpoint.tensors):
        hints.refuse(("exit_layer",), f"{checkpoint.path} has no early-exit head (mid_layer)")
        return ()
    stated = checkpoint.settings.get(EXIT_SETTING)
    layer = stated if hints.exit_layer is None else hints.exit_layer
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 1:
        said = (
            f"its training arguments give {EXIT_SETTING} {stated!r}" if stated is not None else f"it states no {EXIT_SETTING}"
        )
        raise ValueError(
            f"{checkpoint.path} has an early-exit head (mid_layer), and {said}: give exit_layer, the number of blocks before "
            f"it ({PUBLISHED_EXIT} in the published SGG scripts)"
        )
    return (layer,)


def _position_grid(checkpoint: Checkpoint, dim: int) -> int:
    """Side of the square grid that the stored position table [1, L, D] belongs to, which it must equal."""
    shape = shape_of(checkpoint, "pos_embed", 3)
    grid = math.isqrt(shape[1])
    if shape != (1, grid**2, dim):
        raise ValueError(f"pos_embed in {checkpoint.path} is {list(shape)}; expected 1 x a square number of positions x {dim}")
    stored = checkpoint.tensors["pos_embed"][0]
    error = float((stored.float() - sincos_position_table(dim, grid, grid, grid, grid)).abs().max())
    if not error <= POSITION_TOLERANCE[stored.dtype]:
        raise ValueError(
            f"pos_embed in {checkpoint.path} differs by {error:.2g} from the sine-cosine table of a {grid} x {grid} grid"
        )
    return grid


def shape_of(checkpoint: Checkpoint, key: str, dims: int) -> tuple[int, ...]:
    """Shape of a tensor that the sizes are read from."""
    tensor: Tensor | None = checkpoint.tensors.get(key)
    if tensor is None:
        raise ValueError(f"{checkpoint.path} lacks {key}, from which the size of the network is read")
    if tensor.dim() != dims or not tensor.numel():
        raise ValueError(f"{key} in {checkpoint.path} has shape {list(tensor.shape)}; expected {dims} dimensions")
    return tuple(tensor.shape)


def mlp_ratio(hidden: int, dim: int) -> float:
    """``mlp_ratio`` with ``int(dim * mlp_ratio) == hidden``, whatever the rounding."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
