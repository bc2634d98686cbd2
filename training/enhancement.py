"""What an enhancer learns: the high frequencies of the larger of two pictures of the same thing, from the smaller."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segue.models.enhancer import Enhancer, EnhancerSpec
from segue.models.spectrum import back_projected

from .data.picture_pairs import unpacked
from .task import Drawn, NetworkTask

NOISE = 0.04  # the largest deviation of the noise on what an enhancer reads in training: samples are not as clean as drawings


@dataclass(frozen=True)
class EnhancementTask(NetworkTask):
    """The mean absolute error of the frequencies that the smaller picture lacks; its own are kept and weigh nothing."""

    spec: EnhancerSpec

    def network(self) -> Enhancer:
        return Enhancer(self.spec).initialize()

    def draw(self, x0: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 0.0) -> Drawn:
        """Pairs as :mod:`.data.picture_pairs` packs them -> what the network reads, and what it shall give."""
        small, large = unpacked(x0, self.spec.channels, self.spec.factor)
        level = NOISE * torch.rand(len(x0), 1, 1, 1, generator=generator)
        return small + level * torch.randn(small.shape, generator=generator), large

    def losses(self, model: nn.Module, drawn: Drawn, companion: nn.Module | None = None) -> dict[str, Tensor]:
        small, large = drawn
        return {"loss": (model(small) - back_projected(large, small)).abs().mean()}
