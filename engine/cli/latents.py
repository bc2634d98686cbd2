"""``segue sample --output latent``: latents into a folder, a safetensors file each, with the record of how they were drawn."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..files import whole_file
from ..images import RECORD_CHUNK
from ..prompts.vae import OUTPUTS
from .options import Output
from .provenance import Record

LATENT = "latent"  # the tensor [C, H, W] of a file


def wants_pictures(output: Output) -> bool:
    """Whether pictures are asked for, not latents alone.  Raises ``ValueError`` for another kind and for what it excludes."""
    if output.kind not in (None, *OUTPUTS):
        raise ValueError(f"--output must be one of {', '.join(OUTPUTS)}, got {output.kind!r}")
    if output.kind != LATENT:
        return True
    for name in ("grid", "columns", "zoom"):
        if getattr(output, name) is not None:
            raise ValueError(f"--{name} {getattr(output, name)} is for pictures; leave it out with --output latent")
    return False


def write_latents(latents: Tensor, record: Record, names: list[str], folder: Path) -> list[Path]:
    """Write latents [B, C, H, W], each under the name of its picture, whole or not at all; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [(folder / name).with_suffix(".safetensors") for name in names]
    for index, (file, latent) in enumerate(zip(files, latents, strict=True)):
        with whole_file(file) as part:
            save_file({LATENT: latent.cpu().contiguous()}, part, {RECORD_CHUNK: json.dumps(record.part(index).to_dict())})
    return files
