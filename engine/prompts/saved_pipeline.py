"""What a saved SD3 tells without its weights: the network's sizes, the scheduler, pixels per latent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.models.checkpoint_files import read_json
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.mmdit_weights import folder_spec
from segue.models.sizes import VAE_FACTOR

from ..sources import is_sd3_pipeline


@dataclass(frozen=True)
class SavedSD3:
    """``scheduler`` is a diffusers scheduler, or None where there is none beside the transformer."""

    spec: MMDiTSpec
    scheduler: Any = None
    factor: int = VAE_FACTOR

    @classmethod
    def read(cls, source: str | Path) -> "SavedSD3 | None":
        """That of a diffusers pipeline or transformer folder; None for any other source.  ``ValueError`` if broken."""
        folder = Path(source)
        if not folder.is_dir():
            return None
        whole = is_sd3_pipeline(folder)
        spec = folder_spec(folder)
        if spec is None:
            if whole:
                raise FileNotFoundError(f"{folder} is a pipeline without a transformer/config.json")
            return None
        if not whole:
            return cls(spec)
        return cls(spec, _scheduler(folder / "scheduler" / "scheduler_config.json"), _factor(folder / "vae" / "config.json"))


def _scheduler(path: Path) -> Any:
    import diffusers

    config = read_json(path)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(f"{path} names the scheduler {config.get('_class_name')!r}, which diffusers does not have")
    return kind.from_config(config)


def _factor(path: Path) -> int:
    """Pixels per latent: every block of the autoencoder but the last halves the picture."""
    blocks = read_json(path).get("block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise ValueError(f"{path} has no list block_out_channels, got {blocks!r}")
    return 2 ** (len(blocks) - 1)
