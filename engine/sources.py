"""Where a model comes from: a bundled name, a local file or folder, or a repository on the Hugging Face hub."""

import json
import re
from pathlib import Path

from segue.models.bundled import BUNDLED

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def local_source(source: str | Path) -> str | Path:
    """``source`` itself if it is bundled or local; a hub id is downloaded and its local folder returned.

    Raises ``FileNotFoundError`` in one sentence where a hub id cannot be fetched.
    """
    if str(source) in BUNDLED or Path(source).exists() or not _HUB_ID.fullmatch(str(source)):
        return source
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), ignore_patterns=["*.bin", "*.ckpt", "*.msgpack", "*.onnx*"]))
    except Exception as error:  # the hub raises many types: offline, gated, unknown; each means that there is no model
        raise FileNotFoundError(
            f"{str(source)!r} is no local file or folder, and the hub did not give it ({type(error).__name__})"
        ) from error


def is_sd3_pipeline(source: str | Path) -> bool:
    """Whether ``source`` is a saved diffusers Stable Diffusion 3 pipeline."""
    index = Path(source) / "model_index.json"
    if not index.is_file():
        return False
    try:
        record = json.loads(index.read_text())
    except ValueError:
        raise ValueError(f"{index} is not JSON") from None
    return str(record.get("_class_name", "")).startswith("StableDiffusion3")
