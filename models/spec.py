"""What the engine needs to know of a network: sizes, prediction type, time convention, labels, FLOPs per layer."""

from dataclasses import asdict, dataclass
from math import isfinite
from numbers import Integral
from typing import Any, ClassVar, Literal, get_args

from .attention_kind import FULL_ATTENTION, parse_attention

Prediction = Literal["velocity", "data_velocity", "epsilon"]
TimeInput = Literal["sigma", "data_time", "sigma_x1000", "discrete"]
NoisePath = Literal["linear", "cosine"]


PARENT = "parent"  # the condition that takes the superclass; PARENT:2 takes that of the tier above, and so on


def tier_of(condition: Any) -> int:
    """How many tiers above the class a condition stands: 1 for ``parent``, k for ``parent:k``; 0 for any other."""
    name, _, tier = str(condition).partition(":")
    if name != PARENT or (tier and not (tier.isdecimal() and int(tier) > 0)):
        return 0
    return int(tier or 1)


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
        per_sample = sum(condition == "cond" or tier_of(condition) > 0 for condition in conditions)
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

    ``parents[c]`` is the superclass of class ``c``; when given, the label embedding is tiered.  ``tiers`` are those above, from
    the nearest on: ``tiers[t][c]`` is the ancestor of class ``c``, and classes that share one share all above it.  Labels are
    integers: ``0 .. num_classes - 1`` classes, then the superclasses, then the tiers above, then the null label.  The embedding
    of a class of its own weighs ``class_weight``.  ``class_names`` are for people.

    ``affine_norms``: the norms of the blocks have weights and biases, which sampling folds into shift and scale.
    ``attention``: ``full``, or ``probsparse`` perhaps with budgets, see :mod:`.attention_kind`.
    """

    num_classes: int = 1000
    parents: tuple[int, ...] = ()
    frequency_shift: float = 0.0
    mlp_norm_eps: float = 1e-6
    qk_norm: bool = False
    per_block_embedding: bool = False
    class_names: tuple[str, ...] = ()
    tiers: tuple[tuple[int, ...], ...] = ()
    class_weight: float = 1.0
    affine_norms: bool = False
    attention: str = FULL_ATTENTION

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
        object.__setattr__(self, "tiers", tuple(tuple(tier) for tier in self.tiers))
        check_tiers(self.parents, self.tiers)
        parse_attention(self.attention)
        if not isfinite(self.class_weight):
            raise ValueError(f"class_weight must be finite, got {self.class_weight}")
        if self.class_weight != 1 and not self.parents:
            raise ValueError(f"class_weight {self.class_weight} weighs classes beside superclasses, and there are none")

    @property
    def ancestors(self) -> tuple[tuple[int, ...], ...]:
        """The ancestor of every class in every tier above the classes, the nearest tier first."""
        return ((self.parents,) if self.parents else ()) + self.tiers

    @property
    def null_label(self) -> int:
        return self.num_classes + sum(max(tier) + 1 for tier in self.ancestors)

    def parent_label(self, label: int, tier: int = 1) -> int:
        """The label that stands for the ancestor of class ``label``, ``tier`` tiers above it: 1 for its superclass."""
        ancestors = self.ancestors
        if not ancestors:
            raise ValueError(f"model {self.name} has no superclasses")
        if not 1 <= tier <= len(ancestors):
            raise ValueError(f"model {self.name} has tiers 1 to {len(ancestors)} above its classes, got {tier}")
        below = sum(max(members) + 1 for members in ancestors[: tier - 1])
        return self.num_classes + below + ancestors[tier - 1][label]

    def to_dict(self) -> dict:
        """As :meth:`ModelSpec.to_dict`; what a network without further tiers lacks goes without saying too."""
        values = super().to_dict()
        for name, usual in (("tiers", ()), ("class_weight", 1.0), ("affine_norms", False), ("attention", FULL_ATTENTION)):
            if values[name] == usual:
                del values[name]
        return values

    def modulation_flops(self) -> int:
        embedders = self.depth if self.per_block_embedding else 1
        vectors = 6 * self.depth + 2 + 2 * len(self.exits)
        return 2 * vectors * self.dim**2 + embedders * time_embedding_flops(self.dim)

    def block_flops(self, layer: int, tokens: int) -> int:
        linear = 2 * tokens * (4 * self.dim**2 + 2 * self.dim * self.mlp_dim)
        sparse = parse_attention(self.attention)
        return linear + (4 * tokens**2 * self.dim if sparse is None else sparse.flops(tokens, self.dim))


def check_tiers(parents: tuple[int, ...], tiers: tuple[tuple[int, ...], ...]) -> None:
    """Raise ``ValueError`` unless ``tiers`` group the classes as a tree does, above superclasses ``parents``."""
    if tiers and not parents:
        raise ValueError(f"tiers stand above superclasses, and there are none; got {len(tiers)}")
    below = parents
    for number, tier in enumerate(tiers, 2):
        if len(tier) != len(parents):
            raise ValueError(f"tier {number} must name an ancestor of each of {len(parents)} classes, got {len(tier)}")
        found: dict[int, int] = {}
        for label, (member, ancestor) in enumerate(zip(below, tier, strict=True)):
            if found.setdefault(member, ancestor) != ancestor:
                raise ValueError(
                    f"member {member} of tier {number - 1} has two ancestors in tier {number}, {found[member]} and {ancestor} "
                    f"(that of class {label})"
                )
        below = tier
