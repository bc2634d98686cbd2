"""Branches: which condition goes through which network, and how the network is perturbed."""

from dataclasses import dataclass

from segue.kernels.attention import PERTURBATIONS
from segue.models.spec import PARENT, tier_of

from ..numeric_input import whole_number
from .drawn import Chooser, Draw
from .dropped_blocks import DropBlocks
from .layers import checked_layers

PERTURB_KINDS = ("skip", *PERTURBATIONS)


@dataclass(frozen=True)
class Perturb:
    """The network with some layers (counted from 0) perturbed.

    ``skip``: the block is bypassed, both streams of it where there are two.
    ``attention_identity`` (PAG, arXiv 2403.17377): every token sees itself alone.  In the joint attention of SD3 that holds
    for image and text tokens, so the image no longer sees the prompt there.
    ``attention_identity_image`` (PAG as diffusers' SD3 pipeline has it): an image token sees itself and the text, a text token
    everything.  Without text tokens the same as ``attention_identity``.  On SD3.5 diffusers' pipeline also drops the norms of
    queries and keys in those blocks, a defect that is not followed here.
    ``attention_shuffle`` (after TPG, arXiv 2506.10036): the attention's outputs change places among image tokens, by a fixed
    permutation.  The paper moves the tokens themselves; in a transformer that would only move the patches of the output.
    ``attention_skip`` (STG-A): the attention gives nothing.  ``attention_blur`` (SEG with infinite blur): image tokens share
    their mean query, after the norm of queries where there is one (diffusers' hook blurs before it).
    """

    kind: str
    layers: tuple[int, ...]

    def __post_init__(self):
        if self.kind not in PERTURB_KINDS:
            raise ValueError(f"unknown perturbation {self.kind!r}; known: {', '.join(PERTURB_KINDS)}")
        object.__setattr__(self, "layers", checked_layers(self.layers))


@dataclass(frozen=True)
class Exit:
    """The network's early-exit head after ``layer`` blocks."""

    layer: int

    def __post_init__(self):
        object.__setattr__(self, "layer", whole_number(self.layer, "the layer of an early-exit head must be an integer"))
        if self.layer < 1:
            raise ValueError(f"an early-exit head follows at least one block, got layer {self.layer}")


@dataclass(frozen=True)
class JoinedText:
    """The text stream alone, which the images of the conditional rows meet in every attention beside their own text.

    Such a branch has no output: it is live where :class:`NormalizedAttention` acts.
    """


@dataclass(frozen=True)
class Branch:
    """Which condition goes through which network.

    ``condition`` is ``"cond"``, ``"uncond"`` (the null label or the negative prompt), ``"parent"`` (the superclass;
    ``"parent:2"`` the tier above it, and so on), an integer label, or a :class:`.drawn.Draw` of labels; ``network`` is None
    (the full network), a :class:`Perturb`, an :class:`Exit`, a :class:`.dropped_blocks.DropBlocks`, a :class:`JoinedText`, or
    a :class:`.drawn.Chooser`, which adds nothing; ``model`` names a network of the engine.
    """

    condition: str | int | Draw = "cond"
    network: Perturb | Exit | DropBlocks | JoinedText | Chooser | None = None
    model: str = "main"

    def __post_init__(self):
        known = "cond, uncond, parent, parent:N (the N-th tier above the class), or an integer label"
        if isinstance(self.condition, Draw):
            pass
        elif not isinstance(self.condition, str):
            object.__setattr__(self, "condition", whole_number(self.condition, f"a condition must be {known}"))
        elif self.condition not in ("cond", "uncond") and not tier_of(self.condition):
            raise ValueError(f"unknown condition {self.condition!r}; known: {known}")
        if tier_of(self.condition) == 1:
            object.__setattr__(self, "condition", PARENT)  # not also "parent:1"
        if not isinstance(self.network, Perturb | Exit | DropBlocks | JoinedText | Chooser | None):
            raise TypeError(
                f"the network of a branch must be None (the full one), a Perturb, an Exit or a DropBlocks, got {self.network!r}"
            )
        if not isinstance(self.model, str):
            raise TypeError(f"the model of a branch must be the name of a network, got {self.model!r}")

    @property
    def is_conditional(self) -> bool:
        """Whether this is the branch that every rule starts from; perturbing no layer changes nothing."""
        plain = self.network is None or (isinstance(self.network, Perturb) and not self.network.layers)
        return self.condition == "cond" and plain and self.model == "main"

    @property
    def is_text(self) -> bool:
        """Whether it has no rows of an image, and no output."""
        return isinstance(self.network, JoinedText)

    @property
    def perturbed_layers(self) -> tuple[int, ...]:
        """The layers that the branch perturbs."""
        return self.network.layers if isinstance(self.network, Perturb) else ()

    def __str__(self) -> str:
        if isinstance(self.network, Chooser):
            return str(self.network)
        name = f"label {self.condition}" if isinstance(self.condition, int) else str(self.condition)
        if isinstance(self.network, Perturb):
            name += f" {self.network.kind} {','.join(map(str, self.network.layers))}"
        elif isinstance(self.network, Exit):
            name += f" exit {self.network.layer}"
        elif isinstance(self.network, DropBlocks):
            name += f" {self.network}"
        elif self.is_text:
            name += " text"
        return name if self.model == "main" else f"{name} of {self.model}"


COND = Branch()
UNCOND = Branch("uncond")
NEGATIVE_TEXT = Branch("uncond", JoinedText())
