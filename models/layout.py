"""What a checkpoint's key layout tells: the network it describes and where each of its parameters lies in the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .sizes import family_of
from .spec import ModelSpec


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
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")

    def refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Raise ``ValueError`` if one of ``names`` was given."""
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)!r} does not apply: {reason}")
