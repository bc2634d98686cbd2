"""Checkpoint files and folders read into tensors by key; nothing but tensors and plain values is ever loaded."""

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
RUN_FILE = "model.safetensors"
_DIFFUSERS_STEM = "diffusion_pytorch_model"
DIFFUSERS_FILES = tuple(
    f"{_DIFFUSERS_STEM}{end}" for suffix in (".safetensors", ".bin") for end in (suffix, f"{suffix}.index.json")
)
# the other networks in a single file of a whole pipeline, often of other dtypes: not read
OTHER_NETWORKS = {"first_stage_model.": "the VAE", "text_encoders.": "a text encoder", "conditioner.": "a text encoder"}
PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every key


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one checkpoint by key, memory-mapped where the format allows it, and what else the file says."""

    path: Path
    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)  # header of a safetensors file
    settings: Mapping[str, Any] = field(default_factory=dict)  # training arguments kept in a torch file
    ignored: Mapping[str, str] = field(default_factory=dict)  # entries of the file that are not used, with the reason

    def __post_init__(self):
        for key, value in self.tensors.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{key!r} in {self.path} is a {type(value).__name__}, not a tensor")
            if value.dtype not in DTYPES:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
                found = str(value.dtype).removeprefix("torch.")
                raise ValueError(f"{key!r} in {self.path} has dtype {found}; accepted: {known}")


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Read a checkpoint file or folder.

    A folder is a diffusers pipeline (with ``transformer/``), a bare diffusers transformer (with ``config.json``, possibly
    sharded), or a training run (with ``model.safetensors``).  Raises ``FileNotFoundError`` or ``ValueError`` with one sentence.
    """
    path = Path(source)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint file or folder {path}")
    return _read_file(path, path.stem)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else raises ``ValueError``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON and bad UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value


def _read_folder(folder: Path) -> Checkpoint:
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    name = model_name(folder)
    if (inner / "config.json").is_file():
        for file in DIFFUSERS_FILES:
            if (inner / file).is_file():
                return (_read_shards if file.endswith(".json") else _read_file)(inner / file, name)
        raise FileNotFoundError(f"{inner} has a config.json but no weights; expected one of: {', '.join(DIFFUSERS_FILES)}")
    if inner is folder and (folder / RUN_FILE).is_file():
        return _read_file(folder / RUN_FILE, name)
    raise FileNotFoundError(f"{folder} holds no model: expected {RUN_FILE}, config.json with weights, or a transformer folder")


def model_name(folder: str | Path) -> str:
    """What to call the model in a folder: its own name, for a ``transformer`` that of the pipeline around it.

    A snapshot in the hub's cache, ``models--OWNER--NAME/snapshots/HASH``, is called NAME.
    """
    parts = Path(folder).resolve().parts
    if parts[-1] == "transformer" and len(parts) > 2:
        parts = parts[:-1]
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].rpartition("--")[2]
    return parts[-1]


def _read_file(path: Path, name: str) -> Checkpoint:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} has an unknown suffix {path.suffix!r}; accepted: {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        tensors, metadata, ignored = _read_safetensors(path)
        return Checkpoint(path, name, _without_prefix(tensors), metadata=metadata, ignored=ignored)
    content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    for part in ("ema", "model"):
        if isinstance(content.get(part), Mapping):
            return _read_container(path, name, content, part)
    return Checkpoint(path, name, _without_prefix(content))


def _read_container(path: Path, name: str, content: Mapping[str, Any], part: str) -> Checkpoint:
    """A training checkpoint ``{model, ema, opt, args, steps}``: its ``part`` is the network."""
    args = content.get("args")
    settings = dict(vars(args)) if isinstance(args, argparse.Namespace) else dict(args) if isinstance(args, Mapping) else {}
    if "steps" in content:
        settings["steps"] = content["steps"]
    ignored = {key: f"not needed beside {part!r}" for key in content if key not in (part, "args", "steps")}
    return Checkpoint(path, name, _without_prefix(content[part]), settings=settings, ignored=ignored)


def _read_shards(index: Path, name: str) -> Checkpoint:
    """The files that an index names, each read once."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensor names to file names")
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(weight_map.values()):
        if Path(file).name != file or not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index.name} names the shard {file!r}, which is not in {index.parent}")
        shard = _read_file(index.parent / file, name)
        repeated = tensors.keys() & shard.tensors.keys()
        if repeated:
            raise ValueError(f"{sorted(repeated)[0]!r} is in two shards of {index}")
        tensors |= shard.tensors
    return Checkpoint(index, name, tensors)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors, header, and the keys of other networks with the reason why they were not read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = list(file.keys())
            owners = {key: owner for key in keys for prefix, owner in OTHER_NETWORKS.items() if key.startswith(prefix)}
            tensors = {key: file.get_tensor(key) for key in keys if key not in owners}
            ignored = {key: f"a tensor of {owner}" for key, owner in owners.items()}
            return tensors, dict(file.metadata() or {}), ignored
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    """The content of a torch file.  Training arguments are often an ``argparse.Namespace``, the one class let through."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{path} holds {refused[1]}, which is code and is never loaded; save the tensors alone, best as safetensors"
            ) from error
        raise ValueError(f"{path} is truncated or not a torch checkpoint ({type(error).__name__})") from error


def _without_prefix(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for prefix in PREFIXES:
        if tensors and all(isinstance(key, str) and key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
