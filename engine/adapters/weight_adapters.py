"""Adapters of weights for an engine: found by name or place, merged when a model is loaded, and what is told of them."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from segue.models.adapter_file import Adapter, merge_adapter, read_adapter
from segue.models.bundled import ADAPTERS, BUNDLED, adapter_file
from segue.models.checkpoint_files import RUN_FILE

from ..numeric_input import real_number
from ..planning.merged_adapter import MergedAdapter

LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers gives a LoRA in a folder
LORA_RULE = "rule"  # of such a file's header: the guidance that it stands for


def check_adapter_options(adapter: Any, scale: Any) -> float | None:
    """The scale as a number; ``TypeError`` or ``ValueError`` for what is no adapter's place, or a scale of none."""
    if adapter is not None and not isinstance(adapter, str | Path):
        raise TypeError(f"adapter must be a name, a file or a folder, got {adapter!r}")
    if scale is None:
        return None
    if adapter is None:
        raise ValueError(f"adapter_scale={scale!r} is of an adapter, and there is none: give adapter")
    return real_number(scale, "adapter_scale must be a number")


def find_adapter(source: str | Path, adapter: str | Path) -> Path:
    """The file of an adapter: of a bundled model by its name, of others by its file or folder.

    Raises ``FileNotFoundError`` for one that is not there, ``ValueError`` for a bundled one of other weights.
    """
    if source in BUNDLED and str(adapter) in ADAPTERS.get(str(source), {}):
        return adapter_file(str(source), str(adapter))
    path = Path(adapter)
    path = path / RUN_FILE if path.is_dir() else path
    if path.is_file():
        return path
    names = ", ".join(ADAPTERS.get(str(source), {})) or "none"
    raise FileNotFoundError(
        f"{str(adapter)!r} is no adapter here: neither a file or folder nor bundled with {source} ({names})"
    )


def merged(network: nn.Module, adapter: Adapter, scale: float | None) -> tuple[nn.Module, MergedAdapter]:
    """A network with an adapter in its weights, see :func:`segue.models.adapter_file.merge_adapter`."""
    network = merge_adapter(network, adapter, scale)
    scale = adapter.facts.spec.check_scale(scale)
    return network, MergedAdapter(adapter.title, adapter.facts.rule, adapter.described(scale))


def read(source: str | Path, adapter: str | Path | None) -> Adapter | None:
    """The adapter that is asked for; raises as :func:`find_adapter` and for a file that is none."""
    return None if adapter is None else read_adapter(find_adapter(source, adapter))


def find_lora(adapter: str | Path) -> Path:
    """The file of a LoRA of diffusers; raises ``FileNotFoundError`` or ``ValueError``."""
    path = Path(adapter)
    path = path / LORA_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{str(adapter)!r} is no LoRA: neither a file nor a folder with {LORA_FILE}")
    return path


def lora_told(path: Path) -> MergedAdapter:
    """What the file of a LoRA says of itself; raises ``ValueError`` for one that is no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            rule = (file.metadata() or {}).get(LORA_RULE, "")
    except SafetensorError as error:
        raise ValueError(f"the LoRA {path} is truncated or no safetensors file ({error})") from error
    told = f" that stands for {rule}" if rule else ""
    return MergedAdapter(f"LoRA {path.parent.name or path.name}", rule, f"LoRA {path}{told}")


def fuse_lora(pipe: Any, path: Path) -> MergedAdapter:
    """Put a LoRA file into the weights of a pipeline, by diffusers' own loader.  Raises ``ValueError`` in one sentence."""
    told = lora_told(path)
    try:
        pipe.load_lora_weights(path.parent, weight_name=path.name)
        pipe.fuse_lora(safe_fusing=True)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the LoRA {path} does not fit this pipeline: {reason}") from error
    pipe.unload_lora_weights()
    return told
