"""``segue sample --output latent``: latents into a folder, a safetensors file each, with the record of how they were drawn."""

import json
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..files import NewFiles
from ..images import RECORD_CHUNK, check_finite
from ..prompts.vae import OUTPUTS
from ..records.provenance import Record
from .options import Output

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


def write_latents(latents: Tensor, record: Record, names: list[str], folder: Path, new: NewFiles) -> list[Path]:
    """Write latents [B, C, H, W], each under the name of its picture; returns the files.  As :func:`.images.check_finite`."""
    check_finite(latents)
    return [
        new.write((folder / name).with_suffix(".safetensors"), partial(_save_latent, latent, record.part(index)))
        for index, (name, latent) in enumerate(zip(names, latents, strict=True))
    ]


def _save_latent(latent: Tensor, record: Record, path: Path) -> None:
    save_file({LATENT: latent.cpu().contiguous()}, path, {RECORD_CHUNK: json.dumps(record.to_dict())})
