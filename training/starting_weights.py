"""Fine-tuning: the weights of a checkpoint as the start of a run, for its own classes or for others."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from segue.models.bundled import BUNDLED, bundled_files, digest
from segue.models.sit import SiT
from segue.models.spec import SiTSpec
from segue.models.weights import load_network

from .data.source import Source, tiers_of
from .specs import fitted_sit

LABELS, EXITS = "y_embedder.", "exit_layers."


@dataclass(frozen=True, eq=False)
class StartingWeights:
    """``spec`` is the network to train, ``tensors`` what it starts from, by name; ``new`` names the tensors that start anew."""

    spec: SiTSpec
    tensors: dict[str, Tensor]
    new: tuple[str, ...]
    facts: dict[str, str]

    def __str__(self) -> str:
        begun = f"; new: {', '.join(self.new)}" if self.new else ""
        return f"{self.facts['name']} ({self.facts['digest']}): {len(self.tensors)} tensors{begun}"


def starting_weights(
    checkpoint: str | Path,
    source: Source,
    *,
    family: str | None = None,
    heads: int | None = None,
    exit_layer: int | None = None,
    affine_norms: bool = False,
) -> StartingWeights:
    """The network of ``checkpoint`` (a bundled name or a file, as :func:`~segue.models.weights.load_network` reads it).

    Its label table is kept where the source has as many classes, of the same names and superclasses as far as they are known,
    and begins anew otherwise.  ``exit_layer`` adds an early-exit head after that many blocks where there is none,
    ``affine_norms`` weights to the norms of the blocks, which change nothing at the start.  Raises ``ValueError`` where the
    samples of ``source`` are not of the network's channels and size, or it is none to train.
    """
    path = bundled_files(checkpoint)["main"] if checkpoint in BUNDLED else Path(checkpoint)
    network, report = load_network(path, family, heads=heads)
    if not isinstance(network, SiT):
        raise ValueError(f"{checkpoint} is a {type(network).__name__}; training starts from a DiT or a SiT")
    spec: SiTSpec = network.spec
    sizes = (spec.channels, spec.height, spec.width)
    if sizes != source.shape:
        theirs, ours = (" x ".join(map(str, each)) for each in (sizes, source.shape))
        raise ValueError(f"{checkpoint} draws samples of {theirs}, and those of {source.name} are {ours}")
    kept = _same_classes(spec, source)
    wanted = fitted_sit(spec, source) if not kept else replace(spec, class_names=source.class_names or spec.class_names)
    wanted = replace(wanted, affine_norms=wanted.affine_norms or affine_norms)
    if exit_layer is not None:
        wanted = replace(wanted, exits=tuple(sorted({*wanted.exits, exit_layer})))
    tensors = {name: value.float() for name, value in network.state_dict().items() if kept or LABELS not in name}
    added = tuple(f"{EXITS}{layer}" for layer in wanted.exits if layer not in spec.exits)
    new = (*(() if kept else ("the label tables",)), *added)
    return StartingWeights(wanted, tensors, new, {"name": str(checkpoint), "digest": digest(report.path)})


def _same_classes(spec: SiTSpec, source: Source) -> bool:
    same = spec.num_classes == source.num_classes and (spec.parents, spec.tiers) == (source.parents, tiers_of(source))
    known = bool(spec.class_names) and bool(source.class_names)
    return same and (not known or spec.class_names == source.class_names)
