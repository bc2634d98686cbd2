"""What a recipe's network learns: a velocity to sample by, the species of a picture, or its high frequencies."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segue.models.classifiers import Classifier, ClassifierSpec
from segue.models.enhancer import EnhancerSpec
from segue.models.spec import SiTSpec
from segue.models.weights import save_model

Spec = SiTSpec | ClassifierSpec | EnhancerSpec
Drawn = tuple[Tensor, ...]


class Task(Protocol):
    """One way to train a network on pictures with labels."""

    def network(self) -> nn.Module:
        """A new network, initialised from the default generator; parameters that require no gradient stay as they are."""

    def companion(self) -> nn.Module | None:
        """A weak network that is trained beside, on a loss of its own; None for none."""

    def draw(self, x0: Tensor, labels: Tensor, generator: torch.Generator, progress: float) -> Drawn:
        """All that one part of a step depends on, for x0 [B, C, H, W] and labels [B], when ``progress`` of a run is done.

        Tensors on the CPU, of few distinct shapes: each set of them becomes one graph.
        """

    def losses(self, model: nn.Module, drawn: Drawn, companion: nn.Module | None = None) -> dict[str, Tensor]:
        """The losses of a network on what was drawn, moved to its device: fp32 scalars, each a mean over the samples.

        Gradients are taken of ``loss``.  ``model`` may be wrapped; it is called once with gradients.
        """

    def companion_losses(self, companion: nn.Module, drawn: Drawn) -> dict[str, Tensor]:
        """As :meth:`losses`, of the companion."""

    def write(self, network: nn.Module, path: Path, header: Mapping[str, str]) -> None:
        """Write the weights that a run is for; the file appears whole or not at all."""


class NetworkTask:
    """A task without a companion, whose network is written as it is."""

    def companion(self) -> nn.Module | None:
        return None

    def companion_losses(self, companion: nn.Module, drawn: Drawn) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} trains no companion")

    def write(self, network: nn.Module, path: Path, header: Mapping[str, str]) -> None:
        save_model(network, path, header)


@dataclass(frozen=True)
class ClassificationTask(NetworkTask):
    """The cross-entropy of the species."""

    spec: ClassifierSpec

    def network(self) -> Classifier:
        return Classifier(self.spec).initialize()

    def draw(self, x0: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 0.0) -> Drawn:
        return x0, labels

    def losses(self, model: nn.Module, drawn: Drawn, companion: nn.Module | None = None) -> dict[str, Tensor]:
        pictures, labels = drawn
        logits = model(pictures).float()
        wrong = (logits.argmax(1) != labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "wrong": wrong}
