"""What the network regresses to: the flow-matching velocity, plainly, with early-exit heads trained alongside."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


def logit_normal_time(count: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Noise levels [count] in (0, 1), denser in the middle.  Source: SD3 (arXiv 2403.03206), section 3.1."""
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator))


def plain_loss(
    model: nn.Module, x0: Tensor, labels: Tensor, sigma: Tensor, eps: Tensor, exit_weight: float = 0.2
) -> dict[str, Tensor]:
    """``|v - u*|^2`` with ``u* = eps - x0``, plus ``exit_weight`` times the same for every early-exit head.

    x0, eps [B, C, H, W]; labels [B]; sigma [B].  The model must predict the velocity at time sigma (REPA's convention).
    Returns the scalars ``loss``, ``velocity`` and one ``exit<layer>`` per head.
    """
    level = sigma[:, None, None, None]
    x = (1 - level) * x0 + level * eps
    target = eps - x0
    v, heads = model(x, sigma, labels, exits=True)
    losses = {"velocity": (v.float() - target).square().mean()}
    losses |= {f"exit{layer}": (m.float() - target).square().mean() for layer, m in heads.items()}
    losses["loss"] = losses["velocity"] + exit_weight * sum(value for name, value in losses.items() if name.startswith("exit"))
    return losses
