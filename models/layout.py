"""What a checkpoint's key layout tells: the network it describes and where each of its parameters lies in the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .sizes import family_of
from .spec import ModelSpec, positive_integer


@dataclass(frozen=True)
class Layout:
    """``sources(name)`` are the keys whose tensors, joined along dimension 0, are the parameter ``name`` of our network."""

    spec: ModelSpec
    sources: Callable[[str], tuple[str, ...]]
    ignored: Mapping[str, str] = field(default_factory=dict)  # keys that are not needed, with the reason
    positions: str | None = None  # key of a stored position table [1, L, D], used at the native size


@dataclass(frozen=True)
class Hints:
    """What the caller knows and a file may not tell; None is unknown."""

    family: str | None = None
    heads: int | None = None
    exit_layer: int | None = None

    def __post_init__(self):
        if self.family is not None:
            family_of(self.family)
        for name in ("heads", "exit_layer"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, positive_integer(name, getattr(self, name)))

    def refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Raise ``ValueError`` if one of ``names`` was given."""
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)!r} does not apply: {reason}")
