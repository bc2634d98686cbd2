"""Labels that training replaces by the superclass or the null label, so that the network knows these too."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segue.engine.numeric_input import real_number
from segue.models.spec import SiTSpec


@dataclass(frozen=True)
class LabelDropout:
    """Probabilities of two independent dropouts of the label.

    ``everything`` leaves the null label.  ``species`` leaves the superclass (tiered models only); where both strike, the null
    label remains.
    """

    everything: float = 0.1
    species: float = 0.0

    def __post_init__(self):
        for name in ("everything", "species"):
            value = real_number(getattr(self, name), f"label dropout {name} must be a number")
            object.__setattr__(self, name, value)
            if not 0 <= value <= 1:
                raise ValueError(f"label dropout {name} must lie in [0, 1], got {value}")

    def __call__(self, labels: Tensor, spec: SiTSpec, generator: torch.Generator) -> Tensor:
        """labels [B] int64 -> labels [B] with some replaced by the superclass or the null label."""
        draw = torch.rand(2, labels.shape[0], generator=generator)
        if self.species:
            parents = torch.tensor([spec.parent_label(c) for c in range(spec.num_classes)])
            labels = torch.where(draw[0] < self.species, parents[labels], labels)
        return torch.where(draw[1] < self.everything, spec.null_label, labels)
