"""Blocks that are left out at random, others at every step: the weak network of S2-Guidance."""

from dataclasses import dataclass, replace

import torch

from segue.kernels.philox import random_words

from ..numeric_input import real_number, whole_number
from .layers import checked_layers

SHARE = 0.1
COUNTER = 1 << 29  # of the draws: apart from the calls that count the solver's noise


@dataclass(frozen=True)
class DropBlocks:
    """The network without a ``share`` of its blocks, drawn anew at every step from ``seed``, and never one of ``protected``.

    Both streams of a block are left out where there are two.  ``protected`` None: the first and the last block.
    """

    share: float = SHARE
    seed: int = 0
    protected: tuple[int, ...] | None = None

    def __post_init__(self):
        share = real_number(self.share, "the share of dropped blocks must be a number")
        if not 0 < share < 1:
            raise ValueError(f"the share of dropped blocks must lie between 0 and 1, got {share:g}")
        object.__setattr__(self, "share", share)
        object.__setattr__(self, "seed", whole_number(self.seed, "the seed of dropped blocks must be a whole number"))
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"the seed of dropped blocks must lie between 0 and 2^63 - 1, got {self.seed}")
        if self.protected is not None:
            object.__setattr__(self, "protected", checked_layers(self.protected))

    def __str__(self) -> str:
        kept = "" if self.protected is None else f" but {','.join(map(str, self.protected)) or 'none'}"
        return f"without {self.share:.3g} of its blocks{kept}" + (f" from seed {self.seed}" if self.seed else "")

    @property
    def skeleton(self) -> "DropBlocks":
        """What a program is built for: the share and the seed are in a table."""
        return replace(self, share=SHARE, seed=0)

    def candidates(self, depth: int) -> tuple[int, ...]:
        """The blocks that may be left out of ``depth``."""
        protected = (0, depth - 1) if self.protected is None else self.protected
        return tuple(layer for layer in range(depth) if layer not in protected)

    def count(self, depth: int) -> int:
        """How many are left out at a step: the share of all blocks, rounded, and at least one."""
        return max(1, round(self.share * depth))

    def dropped(self, depth: int, steps: int) -> list[tuple[int, ...]]:
        """The blocks that are left out at each of the steps, ascending; each set of that size is as likely.

        The words of Philox under ``seed`` at the counter of the step order the candidates, and the first ones go.
        """
        candidates, count = self.candidates(depth), self.count(depth)
        key = torch.tensor([self.seed], dtype=torch.int64, device="cpu").expand(steps)
        words = random_words(key, torch.arange(COUNTER, COUNTER + steps, device="cpu"), depth).tolist()
        return [tuple(sorted(sorted(candidates, key=own.__getitem__)[:count])) for own in words]
