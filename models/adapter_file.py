"""Files of adapters: what an adapter was made for and by, beside its tensors, and merging one into its network."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .adapted import AdaptedSiT, AdapterSpec
from .fingerprint import fingerprint
from .low_rank import LowRankSpec
from .sit import SiT
from .weights import write_tensors

ADAPTER_KEY = "adapter"  # entry of the safetensors header: what :class:`AdapterFacts` says, as JSON
FORMAT = 1


@dataclass(frozen=True)
class AdapterFacts:
    """What the header of an adapter says.

    ``weights`` is the fingerprint of the network that it was made for, as that is stored, and ``model`` its name.  ``rule`` is
    the guidance that it stands for; ``steps``, ``solver`` and ``sigmas`` are of the trajectories that it was trained on.
    """

    model: str
    weights: str
    rule: str
    steps: int
    solver: str
    sigmas: tuple[float, ...]
    spec: AdapterSpec = field(default_factory=AdapterSpec)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "AdapterFacts":
        """The inverse of :meth:`to_json`.  Raises ``ValueError``."""
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            unknown = values.keys() - {entry.name for entry in fields(cls)}
            if unknown:
                raise ValueError(f"unknown entry {sorted(unknown)[0]!r}")
            for name, kind in {"model": str, "weights": str, "rule": str, "steps": int, "solver": str}.items():
                if type(values[name]) is not kind:
                    raise ValueError(f"{name} cannot be {values[name]!r}")
            spec = values["spec"]
            low_rank = LowRankSpec(**spec["low_rank"])
            scales = None if spec["scales"] is None else tuple(spec["scales"])
            sigmas = tuple(float(sigma) for sigma in values["sigmas"])
            return cls(**values | {"spec": AdapterSpec(low_rank, scales), "sigmas": sigmas})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"its header is not valid: {error if isinstance(error, ValueError) else repr(error)}") from error


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter as its file holds it; ``title`` is what people call it."""

    path: Path
    facts: AdapterFacts
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def title(self) -> str:
        """``sgg adapter``: the first word of its rule."""
        return f"{self.facts.rule.split(':')[0].strip()} adapter"

    def described(self, scale: float | None = None) -> str:
        """One line for people."""
        facts, low_rank = self.facts, self.facts.spec.low_rank
        at = "" if scale is None else f" at scale {scale:g}"
        return (
            f"adapter {self.path.name}{at}: {facts.rule}, trained on {facts.steps} steps of {facts.solver}, "
            f"rank {low_rank.rank} on {', '.join(low_rank.targets)}"
        )


def save_adapter(
    adapted: AdaptedSiT,
    path: str | Path,
    facts: AdapterFacts,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the adapter of a network as safetensors, in half precision; the file appears whole or not at all.

    Raises ``ValueError`` for a tensor that is not finite there, ``OSError`` if the file cannot be written.
    """
    tensors = {name: value.to("cpu", dtype).contiguous() for name, value in adapted.adapter_tensors().items()}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} is not finite in {str(dtype).removeprefix('torch.')}")
    write_tensors(tensors, Path(path), {**(metadata or {}), ADAPTER_KEY: facts.to_json()})


def read_adapter(path: str | Path) -> Adapter:
    """The adapter in a file.  Raises ``FileNotFoundError`` or ``ValueError`` with one sentence."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no adapter {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error})") from error
    if ADAPTER_KEY not in header:
        raise ValueError(f"{path} is no adapter of Segue: its header has no entry {ADAPTER_KEY!r}")
    try:
        return Adapter(path, AdapterFacts.from_json(header[ADAPTER_KEY]), tensors)
    except ValueError as error:
        raise ValueError(f"{path} is no adapter that can be read: {error}") from error


def merge_adapter(network: nn.Module, adapter: Adapter, scale: float | None = None) -> SiT:
    """The network with the adapter in its weights, accumulated in fp32, in place; its parameters become fp32.

    ``network`` is as its file stores it, before any cast.  Raises ``TypeError`` or ``ValueError``, before anything is changed,
    for a network that the adapter was not made for and for a scale that it was not trained at.
    """
    facts = adapter.facts
    if not isinstance(network, SiT):
        raise TypeError(f"the adapter {adapter.path} is for a SiT or a DiT, got a {type(network).__name__}")
    found = fingerprint({"main": network})
    if found != facts.weights:
        raise ValueError(
            f"the adapter {adapter.path} was made for {facts.model} with weights {facts.weights}, and this is "
            f"{network.spec.name} with weights {found}"
        )
    facts.spec.check_scale(scale)
    check_adapter(network, adapter)
    with torch.random.fork_rng(devices=[]):
        adapted = AdaptedSiT(network.float(), facts.spec)
    adapted.load_adapter(dict(adapter.tensors))
    return adapted.merged(scale).requires_grad_(False)


def check_adapter(network: SiT, adapter: Adapter) -> None:
    """Raise ``ValueError`` unless the adapter's tensors are those that its header says, for this network, and finite."""
    spec = adapter.facts.spec
    try:
        wanted = dict(spec.shapes(network))
        found = {name: tuple(value.shape) for name, value in adapter.tensors.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if name not in found:
                raise ValueError(f"it lacks {name}")
            if name not in wanted:
                raise ValueError(f"it holds {name}, for which there is no place")
            if found[name] != wanted[name]:
                raise ValueError(f"{name} has shape {list(found[name])}, not {list(wanted[name])}")
            if not torch.isfinite(adapter.tensors[name]).all():
                raise ValueError(f"{name} is not finite")
    except ValueError as error:
        raise ValueError(f"the adapter {adapter.path} does not fit {network.spec.name}: {error}") from error
