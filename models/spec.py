"""What the engine needs to know of a network: sizes, prediction type, time convention, labels, FLOPs per layer."""

from dataclasses import asdict, dataclass
from math import isfinite
from numbers import Integral
from typing import Any, ClassVar, Literal, get_args

Prediction = Literal["velocity", "data_velocity", "epsilon"]
TimeInput = Literal["sigma", "data_time", "sigma_x1000", "discrete"]
NoisePath = Literal["linear", "cosine"]


def positive_integer(name: str, value: Any) -> int:
    """``value``, Python's or NumPy's, as an int; ``ValueError`` unless it is one of at least 1.  Truth values are none."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


TIME_FREQUENCIES = 256  # sines and cosines that an embedder of times reads


def time_embedding_flops(dim: int) -> int:
    """FLOPs of embedding one time: two linears."""
    return 2 * (TIME_FREQUENCIES * dim + dim**2)


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and conventions common to every diffusion transformer.

    ``prediction`` is the network's own output: ``velocity`` = eps - x0, ``data_velocity`` = x0 - eps (SiT),
    ``epsilon`` = eps (DiT).  ``time`` is its time input: ``sigma`` in [0, 1] (REPA), ``data_time`` = 1 - sigma (SiT),
    ``sigma_x1000`` (SD3), ``discrete`` = index into a 1000-step variance-preserving chain (DiT).

    ``path`` is what the network of a flow was trained along: ``linear`` as above, or ``cosine``, the states
    ``cos(pi t / 2) x0 + sin(pi t / 2) eps``; there the network's time is ``t`` or ``1 - t``, and its output the derivative of
    the state by ``t`` or by ``1 - t`` (SiT's GVP, arXiv 2401.08740, section 2; the cosine path of REPA).
    """

    name: str
    channels: int
    height: int
    width: int
    patch: int
    dim: int
    depth: int
    heads: int
    prediction: Prediction
    time: TimeInput
    mlp_ratio: float = 4.0
    out_channels: int = 0
    exits: tuple[int, ...] = ()
    path: NoisePath = "linear"
    text_tokens: ClassVar[int] = 0  # tokens of a text condition; 0: the condition is a label

    def __post_init__(self):
        for field in ("channels", "height", "width", "patch", "dim", "depth", "heads"):
            object.__setattr__(self, field, positive_integer(field, getattr(self, field)))
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, got dim {self.dim} and heads {self.heads}")
        if not isfinite(self.mlp_ratio) or self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")
        if not self.out_channels:
            object.__setattr__(self, "out_channels", self.channels)
        if self.out_channels < self.channels:
            raise ValueError(f"out_channels must be at least channels ({self.channels}), got {self.out_channels}")
        object.__setattr__(self, "exits", tuple(self.exits))
        for layer in self.exits:
            if not 1 <= layer < self.depth:
                raise ValueError(f"an early-exit head must follow block 1 to {self.depth - 1}, got {layer}")
        self._check_path()
        self.check_size(self.height, self.width)

    def _check_path(self) -> None:
        if self.path not in get_args(NoisePath):
            raise ValueError(f"path must be {' or '.join(get_args(NoisePath))}, got {self.path!r}")
        velocities = self.prediction in ("velocity", "data_velocity") and self.time in ("sigma", "data_time")
        if self.path == "cosine" and not velocities:
            raise ValueError(
                f"the cosine path is one of velocities in time 0 to 1, got prediction {self.prediction!r} and time input "
                f"{self.time!r}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def mlp_dim(self) -> int:
        return int(self.dim * self.mlp_ratio)

    def check_size(self, height: int, width: int) -> None:
        """Raise ``ValueError`` unless a latent of this size can be cut into patches."""
        for side in (height, width):
            if isinstance(side, bool) or not isinstance(side, Integral):
                raise TypeError(f"latent size must be whole numbers, got {height!r} x {width!r}")
        if height < 1 or width < 1 or height % self.patch or width % self.patch:
            raise ValueError(f"latent size must be a positive multiple of the patch size {self.patch}, got {height} x {width}")

    def tokens(self, height: int, width: int) -> int:
        """Image tokens L of a latent of ``height`` x ``width``."""
        return (height // self.patch) * (width // self.patch)

    def distinct_conditions(self, conditions: tuple[str | int, ...], batch: int) -> int:
        """How many different conditions B samples can have: labels and superclasses differ, the null label does not."""
        per_sample = sum(condition in ("cond", "parent") for condition in conditions)
        return per_sample * batch + len(conditions) - per_sample

    def block_flops(self, layer: int, tokens: int) -> int:
        """FLOPs (2 x multiply-add) of one block for one row of ``tokens`` tokens; modulation is in the table."""
        raise NotImplementedError

    def second_text_flops(self, layer: int, tokens: int) -> int:
        """FLOPs that a second text adds to one block for one row; of models that take prompts."""
        raise NotImplementedError

    def modulation_flops(self) -> int:
        """FLOPs of the modulation of one row, where it is not in the table: of a condition that a call draws."""
        raise NotImplementedError

    def embed_flops(self, tokens: int) -> int:
        """FLOPs of the patch embedding of one sample."""
        return 2 * tokens * self.patch**2 * self.channels * self.dim

    def readout_flops(self, tokens: int) -> int:
        """FLOPs of one projection to latent patches (only the ``channels`` that the sampler uses)."""
        return 2 * tokens * self.dim * self.patch**2 * self.channels

    def forward_flops(self, height: int, width: int) -> int:
        """FLOPs of one plain forward of one sample: the unit of relative cost."""
        tokens = self.tokens(height, width)
        blocks = sum(self.block_flops(layer, tokens) for layer in range(self.depth))
        return self.embed_flops(tokens) + blocks + self.readout_flops(tokens)

    def to_dict(self) -> dict:
        """The fields as JSON values; the linear path goes without saying, as in files that are older than the other."""
        values = asdict(self)
        if self.path == "linear":
            del values["path"]
        return values


@dataclass(frozen=True)
class SiTSpec(ModelSpec):
    """A class-conditional DiT or SiT.

    ``parents[c]`` is the superclass of class ``c``; when given, the label embedding is tiered.  Labels are integers:
    ``0 .. num_classes - 1`` classes, then the superclasses, then the null label.  ``class_names`` are for people.
    """

    num_classes: int = 1000
    parents: tuple[int, ...] = ()
    frequency_shift: float = 0.0
    mlp_norm_eps: float = 1e-6
    qk_norm: bool = False
    per_block_embedding: bool = False
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "num_classes", positive_integer("num_classes", self.num_classes))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names must name each of {self.num_classes} classes, got {len(self.class_names)}")
        object.__setattr__(self, "parents", tuple(self.parents))
        if self.parents and len(self.parents) != self.num_classes:
            raise ValueError(
                f"parents must name one superclass for each of {self.num_classes} classes, got {len(self.parents)}"
            )

    @property
    def num_parents(self) -> int:
        return max(self.parents) + 1 if self.parents else 0

    @property
    def null_label(self) -> int:
        return self.num_classes + self.num_parents

    def parent_label(self, label: int) -> int:
        """The label that stands for the superclass of class ``label``."""
        if not self.parents:
            raise ValueError(f"model {self.name} has no superclasses")
        return self.num_classes + self.parents[label]

    def modulation_flops(self) -> int:
        embedders = self.depth if self.per_block_embedding else 1
        vectors = 6 * self.depth + 2 + 2 * len(self.exits)
        return 2 * vectors * self.dim**2 + embedders * time_embedding_flops(self.dim)

    def block_flops(self, layer: int, tokens: int) -> int:
        linear = 2 * tokens * (4 * self.dim**2 + 2 * self.dim * self.mlp_dim)
        return linear + 4 * tokens**2 * self.dim
