"""The sizes of real models at which operations are compiled ahead of time, tuned, and measured."""

from dataclasses import dataclass
from math import isqrt


@dataclass(frozen=True)
class Size:
    """A model at a resolution: B samples with two live branches, L image tokens, M text tokens, width D, H heads."""

    name: str
    samples: int
    tokens: int
    text: int
    width: int
    heads: int
    patch: int
    channels: int
    dual: int = 0  # blocks with a second attention, of the image alone, and with two modulated outputs of one norm
    single: bool = False  # attention in fp32 too
    qk_norm: bool = False  # queries and keys have norms, which bound their scores
    layers: int = 1
    exits: int = 0  # heads beside the last one that end a branch early
    weight: float = 1.0  # how much a run of this model counts among those of the others

    @property
    def rows(self) -> int:
        return 2 * self.samples

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def outputs(self) -> int:
        """Numbers in a patch."""
        return self.patch**2 * self.channels

    @property
    def modulations(self) -> int:
        """Vectors of D numbers that modulate a call: six a block and stream, three more with a second attention, two a head.

        Of the last block's text stream only the norm before the attention is needed.
        """
        text = 6 * (self.layers - 1) + 2 if self.text else 0
        return 6 * self.layers + text + 3 * self.dual + 2 * (1 + self.exits)

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """[B, C, H, W] of a square latent."""
        side = isqrt(self.tokens) * self.patch
        return self.samples, self.channels, side, side


SIZES = (
    Size("herbarium", 24, 64, 0, 192, 6, 4, 3, dual=12, single=True, layers=12, weight=0.1),
    Size("DiT-B/8 256", 8, 16, 0, 768, 12, 8, 4, layers=12, weight=0.1),
    Size("DiT-XL/2 256", 8, 256, 0, 1152, 16, 2, 4, single=True, layers=28, exits=1),
    Size("DiT-XL/2 512", 1, 1024, 0, 1152, 16, 2, 4, layers=28, exits=1),
    Size("SD3-medium 1024", 1, 4096, 333, 1536, 24, 2, 16, layers=24),
    Size("SD3.5-medium 1024", 1, 4096, 333, 1536, 24, 2, 16, dual=13, layers=24, qk_norm=True),
    Size("SD3.5-large 1024", 1, 4096, 333, 2432, 38, 2, 16, layers=38, qk_norm=True),
    Size("DiT-XL/2 256 B=1", 1, 256, 0, 1152, 16, 2, 4, layers=28, exits=1),
    Size("SD3.5-medium 512", 1, 1024, 333, 1536, 24, 2, 16, dual=13, layers=24, qk_norm=True),
    Size("24 heads of 128", 1, 1024, 0, 3072, 24, 2, 16, single=True, layers=24, weight=0.1),
)
