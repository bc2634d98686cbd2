"""Whether samples show what was asked for: accuracy by class and superclass, and what is taken for what."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .features import check_features
from .intervals import LEVEL, Interval, wilson


@dataclass(frozen=True, eq=False)
class Confusion:
    """``counts[asked, found]``, [classes, classes] int64."""

    counts: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "Confusion":
        """From a classifier's logits [N, classes] and the labels [N] that were asked for."""
        logits = check_features(logits, "logits", least=1)
        classes, asked = logits.shape[1], torch.as_tensor(labels).cpu()
        if asked.shape != (len(logits),) or asked.is_floating_point():
            raise ValueError(f"labels must be {len(logits)} integers, got {asked.dtype} of shape {list(asked.shape)}")
        if not 0 <= int(asked.min()) <= int(asked.max()) < classes:
            raise ValueError(f"labels must lie in [0, {classes - 1}], got {int(asked.min())} to {int(asked.max())}")
        pairs = asked.long() * classes + logits.argmax(dim=1)
        return cls(torch.bincount(pairs, minlength=classes**2).view(classes, classes))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def right(self) -> int:
        return int(self.counts.trace())

    def accuracy(self, level: float = LEVEL) -> Interval:
        """The share that was found to be what was asked for, with Wilson's interval."""
        return wilson(self.right, self.total, level)

    def by_superclass(self, parents: Sequence[int]) -> "Confusion":
        """The same samples with every class as its superclass, ``parents[class]``."""
        if len(parents) != len(self.counts):
            raise ValueError(f"parents must name one superclass for each of {len(self.counts)} classes, got {len(parents)}")
        member = torch.nn.functional.one_hot(torch.tensor(list(parents))).to(self.counts)  # [classes, superclasses]
        return Confusion(member.T @ self.counts @ member)

    def most_confused(self, most: int) -> list[tuple[int, int, int]]:
        """The ``most`` frequent mistakes as (asked, found, how often), the most frequent first."""
        mistakes = self.counts - torch.diag(self.counts.diagonal())
        order = mistakes.flatten().argsort(descending=True, stable=True)[:most].tolist()
        found = [(*divmod(place, len(mistakes)), int(mistakes.flatten()[place])) for place in order]
        return [mistake for mistake in found if mistake[2]]
