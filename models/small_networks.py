"""The small networks beside a model, classifiers and enhancers: what their specs share, and how their files are read."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from torch import nn

from .checkpoint_files import Checkpoint, read_checkpoint
from .weights import SPEC_KEY

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class SmallSpec:
    """A network by name; its sizes are fields of each kind."""

    kind: ClassVar[str]  # with its article
    told_by: ClassVar[frozenset[str]]  # fields that no other kind has together

    name: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def describes(cls, values: Any) -> bool:
        """Whether JSON values name the fields that tell this kind, and none that it has not."""
        known = {field.name for field in fields(cls)}
        return isinstance(values, dict) and cls.told_by <= values.keys() <= known

    @classmethod
    def stated_in(cls, checkpoint: Checkpoint) -> Self:
        """The spec in the header of a file.  Raises ``ValueError`` where it is absent, of another kind or not valid."""
        path = checkpoint.path
        try:
            values = json.loads(checkpoint.metadata[SPEC_KEY])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is not {cls.kind}; its header states no network") from error
        if not cls.describes(values):
            raise ValueError(f"{path} is not {cls.kind}; its header describes another network")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the spec in {path} is not valid: {error}") from error


def load_small(path: Path, kind: type[SmallSpec], network: type[Network]) -> Network:
    """A network in fp32 on the CPU, without gradients, from a file or a training run of our own.

    Raises ``ValueError`` or ``FileNotFoundError`` with one sentence.
    """
    checkpoint = read_checkpoint(path)
    spec = kind.stated_in(checkpoint)
    model = network(spec)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.tensors.items()})
    except RuntimeError as error:
        raise ValueError(f"the tensors in {path} do not fit {spec.name}: {str(error).splitlines()[1].strip()}") from error
    return model.requires_grad_(False).eval()
