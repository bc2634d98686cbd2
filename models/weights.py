"""Strict loading and saving of networks: every tensor of a checkpoint is used, or ignored for a stated reason, or an error."""

import dataclasses
import difflib
import json
import logging
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from .bundled import BUNDLED, bundled_files
from .checkpoint_files import RUN_FILE, Checkpoint, read_checkpoint
from .layout import Hints, Layout
from .mmdit import MMDiT
from .projectors import TRAINING_ONLY, projector_keys
from .registry import make_network, read_layout
from .sit import SiT
from .spec import SiTSpec
from .unallocated import unallocated

log = logging.getLogger(__name__)
SPEC_KEY = "spec"  # entry of the safetensors header that holds the spec as JSON
SHOWN = 3  # keys named in an error
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a checkpoint; keys are those of the file, without what stands before all of a network.

    ``ignored`` maps keys, and names of whole entries, to reasons.
    """

    path: Path
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    ignored: Mapping[str, str]

    def check(self) -> None:
        """Raise ``ValueError`` naming the first keys that are missing, unexpected or mis-shaped, with their counts."""
        faults = {"missing": self.missing, "unexpected": self.unexpected, "mis-shaped": self.misshaped}
        parts = [f"{len(keys)} {fault} ({_first(keys)})" for fault, keys in faults.items() if keys]
        if parts:
            raise ValueError(f"the tensors in {self.path} do not fit the network: {'; '.join(parts)}")

    def __str__(self) -> str:
        reasons = [f"{reason}: {_first(self._ignored_for(reason))}" for reason in dict.fromkeys(self.ignored.values())]
        return f"{self.path}: {self.loaded} tensors loaded, {len(self.ignored)} ignored" + "".join(f"; {r}" for r in reasons)

    def _ignored_for(self, reason: str) -> list[str]:
        return [key for key, value in self.ignored.items() if value == reason]


def _first(keys: list[str] | tuple[str, ...]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")


# --- loading ---------------------------------------------------------------------------------------------------------


def load_model(
    source: str | Path,
    family: str | None = None,
    *,
    heads: int | None = None,
    exit_layer: int | None = None,
    variant: str | None = None,
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The network of ``source``, and further networks by name.

    The bundled herbarium has ``weak``, and so have checkpoints of SGG's training beside a separate network.  ``source``: a
    bundled name, a checkpoint file or a folder; see :func:`load_network` for the rest.
    """
    if isinstance(source, str) and source in BUNDLED:
        if family or heads or exit_layer or variant:
            raise ValueError(
                f"the bundled model {source} states its own spec; family, heads, exit_layer and variant do not apply"
            )
        networks = {name: load_network(path)[0] for name, path in bundled_files(source).items()}
        return networks.pop("main"), networks
    if not Path(source).exists():
        near = "".join(f"; did you mean {name!r}?" for name in difflib.get_close_matches(str(source), BUNDLED, n=1))
        raise FileNotFoundError(
            f"{str(source)!r} is neither a bundled model ({', '.join(BUNDLED)}) nor a file or folder here{near}"
        )
    checkpoint, hints = read_checkpoint(source, variant), Hints(family, heads, exit_layer)
    beside = Hints(family)  # the others are the caller's knowledge of the main network
    further = {name: _network(part, beside)[0] for name, part in checkpoint.further.items()}
    return _network(checkpoint, hints)[0], further


def load_network(
    source: str | Path,
    family: str | None = None,
    *,
    heads: int | None = None,
    exit_layer: int | None = None,
    variant: str | None = None,
) -> tuple[SiT | MMDiT, LoadReport]:
    """One network from a file or folder, on the CPU, with a report of every tensor.

    Parameters keep the dtype they are stored in (fp32 if a file mixes dtypes) and may be views of the memory-mapped file.

    Reads our own files, diffusers' ``DiTTransformer2DModel`` and ``SD3Transformer2DModel``, the published SD3 single files,
    and the official DiT, SiT, REPA and SGG layouts.  Averaged (EMA) weights are taken where there are any, whatever they are
    called; the report says beside what.  ``family`` (``dit``, ``sit``, ``repa``) is needed for official files, ``heads`` for
    widths that were never published; ``exit_layer`` is the number of blocks before SGG's branch head (default: the file's
    training arguments).  ``variant`` is that of diffusers' files, as in ``fp16``.  Raises ``ValueError`` or
    ``FileNotFoundError`` with one sentence.
    """
    return _network(read_checkpoint(source, variant), Hints(family, heads, exit_layer))


def _network(checkpoint: Checkpoint, hints: Hints) -> tuple[SiT | MMDiT, LoadReport]:
    layout = find_layout(checkpoint, hints)
    model, report = build_network(checkpoint, layout)
    log.info("%s", report)
    return model.eval(), report


def build_network(checkpoint: Checkpoint, layout: Layout) -> tuple[SiT | MMDiT, LoadReport]:
    """The network of a layout, its parameters taken from the checkpoint without initialising or copying them first."""
    if layout.spec.depth > len(checkpoint.tensors):
        raise ValueError(f"{checkpoint.path} holds {len(checkpoint.tensors)} tensors, too few for {layout.spec.depth} blocks")
    with unallocated():
        model = make_network(layout.spec)
    tensors, report = _gather(checkpoint, layout, model)
    report.check()
    dtypes = {value.dtype for value in tensors.values()}
    common = dtypes.pop() if len(dtypes) == 1 else torch.float32
    model.load_state_dict({name: value.to(common) for name, value in tensors.items()}, assign=True)
    if layout.positions:
        model.pos_embed = checkpoint.tensors[layout.positions][0].float()
    return model, report


def find_layout(checkpoint: Checkpoint, hints: Hints) -> Layout:
    """Recognise the layout of a checkpoint; raises ``ValueError`` if it is none of ours or lacks what it needs."""
    if SPEC_KEY in checkpoint.metadata:
        hints.refuse(("family", "heads", "exit_layer"), f"{checkpoint.path} states its own spec")
        ignored = dict.fromkeys(projector_keys(checkpoint.tensors), TRAINING_ONLY)
        return Layout(stored_spec(checkpoint), lambda name: (name,), ignored)
    if any(key.startswith("embedders.") for key in checkpoint.tensors):
        raise ValueError(
            f"{checkpoint.path} has the tensor names of our own networks, but no {SPEC_KEY} in a header to state their sizes; "
            f"load the {RUN_FILE} of the training run, or write the network by save_model"
        )
    layout = read_layout(checkpoint, hints)
    if layout is not None:
        return layout
    raise ValueError(
        f"{checkpoint.path} has the tensor names of no known network: {_first(list(checkpoint.tensors)) or 'none'}"
    )


def _gather(checkpoint: Checkpoint, layout: Layout, model: SiT | MMDiT) -> tuple[dict[str, Tensor], LoadReport]:
    """The parameters of ``model`` by name, from their keys in the checkpoint."""
    tensors, missing, misshaped, used = {}, [], [], {*layout.ignored, layout.positions}
    for name, expected in model.state_dict().items():
        keys = layout.sources(name)
        used.update(keys)
        absent = [key for key in keys if key not in checkpoint.tensors]
        if absent:
            missing += absent
            continue
        parts = [_weights(checkpoint, key) for key in keys]
        wanted = (expected.shape[0] // len(keys), *expected.shape[1:])
        wrong = [
            f"{key} {list(part.shape)} for {list(wanted)}"
            for key, part in zip(keys, parts, strict=True)
            if part.shape != wanted
        ]
        misshaped += wrong
        if not wrong:
            tensors[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    unexpected = [key for key in checkpoint.tensors if key not in used]
    ignored = {**checkpoint.ignored, **layout.ignored}
    return tensors, LoadReport(checkpoint.path, len(tensors), tuple(missing), tuple(unexpected), tuple(misshaped), ignored)


def _weights(checkpoint: Checkpoint, key: str) -> Tensor:
    tensor = checkpoint.tensors[key]
    if tensor.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        found = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{key!r} in {checkpoint.path} has dtype {found}; accepted: {known}")
    return tensor


# --- our own files ---------------------------------------------------------------------------------------------------


class SavedNetwork(Protocol):
    """A network that says what it is: its ``spec`` is written beside its weights."""

    spec: Any

    def state_dict(self) -> dict[str, Tensor]: ...


def save_model(model: SavedNetwork, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network with its spec as safetensors; the file appears whole or not at all.

    ``metadata`` adds strings to the header.  The position table is computed on loading, not stored.  Raises ``OSError`` if
    the file cannot be written.
    """
    header = {**(metadata or {}), SPEC_KEY: json.dumps(model.spec.to_dict())}
    write_tensors({name: value.detach().contiguous() for name, value in model.state_dict().items()}, Path(path), header)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Write contiguous tensors as safetensors; the file appears whole or not at all, else ``OSError``."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")  # no file of the user's has this name
    try:
        part.touch()
        mode = part.stat().st_mode  # what the process may give; safetensors alone would leave the file to its owner
        save_file(dict(tensors), part, metadata=dict(header))
        part.chmod(mode)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write the checkpoint {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def stored_spec(checkpoint: Checkpoint) -> SiTSpec:
    """The spec in the header of one of our own files."""

    def refuse_constant(name: str):
        raise ValueError(f"{name} is not a JSON number")

    try:
        values = json.loads(checkpoint.metadata[SPEC_KEY], parse_constant=refuse_constant)
    except ValueError as error:
        raise ValueError(f"the spec in {checkpoint.path} is not valid: {error}") from error
    return read_spec(values, str(checkpoint.path))


def read_spec(values: Any, where: str) -> SiTSpec:
    """The spec of a SiT from JSON values that were read from ``where``; ``ValueError`` unless each suits its field."""
    try:
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, got a {type(values).__name__}")
        types = get_type_hints(SiTSpec)
        known = {field.name for field in dataclasses.fields(SiTSpec)}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"unknown field {name!r}")
            if not _suits(value, types[name]):
                raise ValueError(f"{name} cannot be {value!r}")
        return SiTSpec(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the spec in {where} is not valid: {error}") from error


def _suits(value: Any, kind: Any) -> bool:
    """Whether a JSON value can be a field of that type: a number, a boolean, a string, a named choice, a tuple of one type."""
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_suits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind
