"""Small networks trained on leaves in the plane: what the exact mixtures of the method's study play is learnt here.

A residual perceptron of a point, its noise level and its label regresses to ``eps - x0`` by flow matching, a share of the
labels dropped; the weak one is narrower and trained for fewer steps.  After figures 2 and 3 of SGG (arXiv 2603.20584), which
are of networks that were trained on a toy distribution of this kind; sizes and lengths here are our own.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from segue.engine.engine import Engine
from segue.engine.files import whole_file
from segue.training.mixture import GaussianMixture
from segue.training.mixture_network import MixtureNetwork

from ..mixture_study import Study

HARMONICS, BLOCKS = 8, 3
DROPOUT = 0.1
ZOOM = 2.0  # points lie within about one of the origin


@dataclass(frozen=True)
class Length:
    """How wide a network is and how long it is trained: ``steps`` of ``batch`` points."""

    width: int
    steps: int
    batch: int = 512
    learning_rate: float = 3e-3


class PlaneNetwork(nn.Module):
    """A velocity of points x [B, 2] at noise levels [B] for labels [B], the last of which is none, [B, 2] fp32."""

    parents: tuple[int, ...] = ()

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.num_classes = num_classes
        self.label = nn.Embedding(num_classes + 1, width)
        self.first = nn.Linear(2 + 2 * HARMONICS, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(BLOCKS))
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        angles = math.pi * sigma[:, None] * torch.arange(1, HARMONICS + 1)
        state = self.first(torch.cat([ZOOM * x, angles.sin(), angles.cos()], dim=1)) + self.label(labels)
        for block in self.blocks:
            state = state + block(F.silu(state))
        return self.last(F.silu(state))

    @torch.no_grad()
    def velocity(self, x: Tensor, sigma: float | Tensor, labels: int | Tensor) -> Tensor:
        """As that of a mixture, [B, 2] fp64."""
        levels = torch.as_tensor(sigma, dtype=torch.float32).expand(len(x))
        return self(x.float(), levels, torch.as_tensor(labels).expand(len(x))).double()


def train(truth: GaussianMixture, length: Length, seed: int, advance: Callable[[], None] = lambda: None) -> PlaneNetwork:
    """A network fitted to points of ``truth`` at uniform noise levels, by Adam with a cosine; the same of the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PlaneNetwork(truth.num_classes, length.width)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), length.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, length.steps)
    for _ in range(length.steps):
        labels = torch.randint(truth.num_classes, (length.batch,), generator=generator)
        x0 = truth.draw(labels, generator).float()
        dropped = torch.rand(length.batch, generator=generator) < DROPOUT
        labels = torch.where(dropped, truth.null_label, labels)
        sigma, eps = torch.rand(length.batch, generator=generator), torch.randn(length.batch, 2, generator=generator)
        x = (1 - sigma)[:, None] * x0 + sigma[:, None] * eps
        loss = (network(x, sigma, labels) - (eps - x0)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        advance()
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class TrainedStudy(Study):
    """A study whose networks are trained: ``strong`` and ``weak`` from the random numbers of ``seed``.

    They are kept in ``folder``, and trained again only where they are not.
    """

    strong: Length = Length(128, 4000)
    weak: Length = Length(32, 1000)
    seed: int = 0
    folder: Path = Path("runs/reproduction/mixture")
    weak_is = "a smaller, less trained network"

    def numbers(self) -> dict[str, Any]:
        lengths = {"strong": asdict(self.strong), "weak": asdict(self.weak)}
        played = {"blur", "weak_blur", "confusion", "folder"}  # of exact networks, and of this machine
        return {name: value for name, value in super().numbers().items() if name not in played} | lengths

    def engine(self) -> Engine:
        strong, weak = (self.network(length) for length in (self.strong, self.weak))
        return Engine(MixtureNetwork([strong], "leaves"), {"weak": MixtureNetwork([weak], "less trained")}, device="cpu")

    def kept(self, length: Length) -> Path:
        """Where a network is kept: its name says all that it depends on."""
        sizes = f"{length.width}-{length.steps}-{length.batch}-{length.learning_rate:g}"
        return self.folder / f"{self.num_classes}-classes-depth-{self.depth}-{sizes}-seed-{self.seed}.safetensors"

    def network(self, length: Length, advance: Callable[[], None] = lambda: None) -> PlaneNetwork:
        """That of its file, or trained now and kept."""
        path = self.kept(length)
        if path.exists():
            network = PlaneNetwork(self.num_classes, length.width)
            network.load_state_dict(load_file(path))
            return network.eval().requires_grad_(False)
        network = train(self.truth, length, self.seed, advance)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            save_file(network.state_dict(), part)
        return network
