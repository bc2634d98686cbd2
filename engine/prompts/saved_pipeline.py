"""A saved SD3: what it tells without its weights (sizes, scheduler, pixels per latent), and the pipeline loaded from it."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from segue.models.checkpoint_files import read_json
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.mmdit_weights import folder_spec
from segue.models.sizes import VAE_FACTOR

from ..adapters.scheduler_solver import scheduler_from_config
from ..saved_files import PIPELINE_FILE, SD3_PARTS, T5_PARTS, is_sd3_index, pipeline_parts, present_parts
from ..sources import DEFAULT, Reading


@dataclass(frozen=True)
class SavedSD3:
    """``scheduler`` is a diffusers scheduler, or None where there is none beside the transformer.

    ``vae_channels`` are those of the latents that the VAE takes; None: it has no VAE.
    """

    spec: MMDiTSpec
    scheduler: Any = None
    factor: int = VAE_FACTOR
    vae_channels: int | None = None

    @classmethod
    def read(cls, source: str | Path) -> "SavedSD3 | None":
        """That of a diffusers pipeline or transformer folder; None for any other source.  ``ValueError`` if broken."""
        folder = Path(source)
        if not folder.is_dir():
            return None
        parts = pipeline_parts(folder)
        spec, whole = folder_spec(folder), is_sd3_index(parts)
        if spec is None:
            if whole:
                raise FileNotFoundError(f"{folder} is a pipeline without a transformer/config.json")
            return None
        if not whole:
            return cls(spec)
        scheduler = _scheduler(folder, parts)
        if "vae" not in present_parts(parts):
            return cls(spec, scheduler)
        return cls(spec, scheduler, *_vae_sizes(folder / "vae" / "config.json"))

    def check_vae(self) -> None:
        """Raise ``ValueError`` unless a VAE for the network's latents was saved with it."""
        if self.vae_channels is None:
            raise ValueError(f"{self.spec.name} has no VAE to make pictures or to read them: ask for --output latent")
        if self.vae_channels != self.spec.channels:
            raise ValueError(
                f"the VAE of {self.spec.name} takes latents of {self.vae_channels} channels, and the transformer makes "
                f"{self.spec.channels}: ask for --output latent"
            )


def load_pipeline(folder: str | Path, dtype: torch.dtype, reading: Reading = DEFAULT) -> Any:
    """The ``StableDiffusion3Pipeline`` of a folder, on the CPU; what it was saved without, and T5 if asked, is None.

    Raises ``ValueError`` or ``OSError``, before any weights are read, for one that cannot run.
    """
    from diffusers import StableDiffusion3Pipeline

    SavedSD3.read(folder)
    parts = pipeline_parts(Path(folder))
    if not is_sd3_index(parts):
        raise FileNotFoundError(f"{folder} is no saved Stable Diffusion 3 pipeline: its {PIPELINE_FILE} names none")
    present = present_parts(parts, reading.t5)
    for name in sorted(present):
        if not (Path(folder) / name).is_dir():
            hint = ": give t5=False to run without it" if name in T5_PARTS else ""
            raise FileNotFoundError(f"{folder} is a pipeline without its {name} folder{hint}")
    if find_spec("transformers") is None:
        raise ValueError(
            f"{folder} is a Stable Diffusion 3, which needs the package transformers, and that is not installed: "
            "pip install transformers"
        )
    absent = dict.fromkeys(sorted(SD3_PARTS - present))
    return StableDiffusion3Pipeline.from_pretrained(str(folder), dtype=dtype, variant=reading.variant, **absent)


def _scheduler(folder: Path, parts: dict[str, Any]) -> Any:
    """The scheduler that a pipeline loaded from here has: the class that its index names, whatever its own file does."""
    path, named = folder / "scheduler" / "scheduler_config.json", parts.get("scheduler")
    config = _part(path)
    if isinstance(named, list) and len(named) == 2 and named[1]:
        config, path = config | {"_class_name": named[1]}, folder / PIPELINE_FILE
    return scheduler_from_config(config, str(path))


def _vae_sizes(path: Path) -> tuple[int, int]:
    """Pixels per latent, as every block of the autoencoder but the last halves the picture, and channels of a latent."""
    config = _part(path)
    blocks, channels = config.get("block_out_channels"), config.get("latent_channels", 4)
    if not isinstance(blocks, list) or not blocks:
        raise ValueError(f"{path} has no list block_out_channels, got {blocks!r}")
    if type(channels) is not int or channels < 1:
        raise ValueError(f"{path} must have a positive integer latent_channels, got {channels!r}")
    return 2 ** (len(blocks) - 1), channels


def _part(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent.parent} is a pipeline without a {path.parent.name}/{path.name}")
    return read_json(path)
