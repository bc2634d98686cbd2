"""Checkpoint files and folders read into tensors by key; nothing but tensors and plain values is ever loaded."""

import argparse
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .contained_networks import choose_network, is_average, training_settings

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
RUN_FILE = "model.safetensors"
TRANSFORMER = "transformer"  # the folder of a pipeline that holds its network
_DIFFUSERS_STEM = "diffusion_pytorch_model"
# the other networks in a single file of a whole pipeline, often of other dtypes: not read
OTHER_NETWORKS = {"first_stage_model.": "the VAE", "text_encoders.": "a text encoder", "conditioner.": "a text encoder"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one network by their names in it, memory-mapped where the format allows it, and what else a file says.

    ``further``: networks that were trained beside it, by the name of their use (``weak``).
    """

    path: Path
    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)  # header of a safetensors file
    settings: Mapping[str, Any] = field(default_factory=dict)  # training arguments kept in a torch file
    ignored: Mapping[str, str] = field(default_factory=dict)  # entries of the file that are not used, with the reason
    further: Mapping[str, "Checkpoint"] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """What one file holds: nested dictionaries of tensors and plain values, its header, and the keys that were not read."""

    entries: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(source: str | Path, variant: str | None = None) -> Checkpoint:
    """Read a checkpoint file or folder.

    A folder is a diffusers pipeline (with ``transformer/``), a bare diffusers transformer (with ``config.json``, possibly
    sharded), or a training run (with ``model.safetensors``).  ``variant`` is that of diffusers' files, as in ``fp16``.  Raises
    ``FileNotFoundError`` or ``ValueError`` with one sentence.
    """
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, variant)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint file or folder {path}")
    if variant is not None:
        raise ValueError(f"variant={variant!r} does not apply: {path} is one file")
    return _read_file(path, path.stem)


def diffusers_files(variant: str | None = None) -> tuple[str, ...]:
    """The names that diffusers gives the weights of a network, or the index of their shards; the first that is there counts."""
    mark = "" if variant is None else f".{variant}"
    kinds = (".safetensors", ".bin")
    return tuple(f"{_DIFFUSERS_STEM}{name}" for kind in kinds for name in (f"{mark}{kind}", f"{kind}.index{mark}.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else raises ``ValueError``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON and bad UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value


def _read_folder(folder: Path, variant: str | None) -> Checkpoint:
    inner = folder / TRANSFORMER if (folder / TRANSFORMER).is_dir() else folder
    name = model_name(folder)
    if (inner / "config.json").is_file():
        if inner is not folder and not (folder / "model_index.json").is_file():
            _refuse_average_beside(inner)
        return _read_diffusers(inner, name, variant)
    if inner is folder and (folder / RUN_FILE).is_file():
        if variant is not None:
            raise ValueError(f"variant={variant!r} does not apply: {folder} holds a {RUN_FILE}")
        _refuse_average_beside(folder / RUN_FILE)
        return _read_file(folder / RUN_FILE, name)
    raise FileNotFoundError(
        f"{folder} holds no model: expected {RUN_FILE}, config.json with weights, or a {TRANSFORMER} folder"
    )


def _read_diffusers(folder: Path, name: str, variant: str | None) -> Checkpoint:
    """The weights beside a ``config.json``, of the variant that is asked for."""
    names = diffusers_files(variant)
    for file in names:
        if (folder / file).is_file():
            if variant is None:
                _refuse_average_beside(folder / file)
            return (_read_shards if file.endswith(".json") else _read_file)(folder / file, name)
    found = weight_variants(path.name for path in folder.iterdir())
    what, hint = ("weights", f"expected one of: {', '.join(names)}")
    if found or variant is not None:
        what = "weights without a variant" if variant is None else f"weights of the variant {variant!r}"
        hint = f"it has the variants {', '.join(found)}" if found else "leave the variant out"
    raise FileNotFoundError(f"{folder} has a config.json but no {what}; {hint}")


def weight_variants(names: Iterable[str]) -> list[str]:
    """The variants that the file names of a folder tell of; whole files, shards and their indices alike."""
    known = re.compile(
        rf"{_DIFFUSERS_STEM}\.(?:safetensors\.index\.|bin\.index\.)?(\w+?)(?:-\d+-of-\d+)?\.(?:safetensors|bin|json)"
    )
    return sorted({match[1] for name in names if (match := known.fullmatch(name))})


def _refuse_average_beside(chosen: Path) -> None:
    """Raise ``ValueError`` where a file or folder of averaged weights stands beside the one that the names would choose."""
    for other in sorted(chosen.parent.iterdir()):
        weights = other.is_dir() and TRANSFORMER in other.name if chosen.is_dir() else other.suffix in SUFFIXES
        if weights and is_average((other.name,)):
            raise ValueError(
                f"{chosen.parent} holds {chosen.name} and averaged weights in {other.name}: name the one that is meant"
            )


def model_name(folder: str | Path) -> str:
    """What to call the model in a folder: its own name, for a ``transformer`` that of the pipeline around it.

    A snapshot in the hub's cache, ``models--OWNER--NAME/snapshots/HASH``, is called NAME.
    """
    parts = Path(folder).resolve().parts
    if parts[-1] == TRANSFORMER and len(parts) > 2:
        parts = parts[:-1]
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].rpartition("--")[2]
    return parts[-1]


def _read_file(path: Path, name: str) -> Checkpoint:
    return _checkpoint(path, name, _read_content(path))


def _checkpoint(path: Path, name: str, content: Content) -> Checkpoint:
    """The network that is meant of a file's content, and the weak one trained beside it."""
    choice = choose_network(content.entries, path)
    settings, further = training_settings(content.entries), {}
    if choice.weak is not None:
        further["weak"] = Checkpoint(path, f"{name}-weak", choice.weak.tensors, settings=settings)
    ignored = {**content.ignored, **choice.ignored}
    return Checkpoint(path, name, choice.main.tensors, content.metadata, settings, ignored, further)


def _read_shards(index: Path, name: str) -> Checkpoint:
    """The files that an index names, each read once."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensor names to file names")
    entries: dict[str, Any] = {}
    for file in dict.fromkeys(weight_map.values()):
        if Path(file).name != file or not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index.name} names the shard {file!r}, which is not in {index.parent}")
        shard = _read_content(index.parent / file).entries
        repeated = entries.keys() & shard.keys()
        if repeated:
            raise ValueError(f"{sorted(repeated)[0]!r} is in two shards of {index}")
        entries |= shard
    return _checkpoint(index, name, Content(entries))


def _read_content(path: Path) -> Content:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} has an unknown suffix {path.suffix!r}; accepted: {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    entries = _read_torch(path)
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path} holds a {type(entries).__name__}, not a dictionary of tensors")
    return Content(entries)


def _read_safetensors(path: Path) -> Content:
    """Tensors, header, and the keys of other networks with the reason why they were not read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = list(file.keys())
            owners = {key: owner for key in keys for prefix, owner in OTHER_NETWORKS.items() if key.startswith(prefix)}
            tensors = {key: file.get_tensor(key) for key in keys if key not in owners}
            ignored = {key: f"a tensor of {owner}" for key, owner in owners.items()}
            return Content(tensors, dict(file.metadata() or {}), ignored)
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
