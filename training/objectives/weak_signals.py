"""The weak signals of weak-to-strong training (SGG, arXiv 2603.20584): what the output is extrapolated away from.

Each says at which samples it acts, which of them need a forward of their own, and what the weak output is; no gradient flows
through any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from segue.engine.rules.preset_numbers import usual_numbers
from segue.models.sit import Pass, SiT
from segue.models.spec import SiTSpec

from .objective import Objective


@dataclass(frozen=True, eq=False)
class Strong:
    """The pass that carries gradients, and what it was of: x [B, C, H, W], time [B], labels [B].

    ``network`` is the bare network; ``companion`` a smaller one, where there is one.
    """

    network: SiT
    found: Pass
    x: Tensor
    time: Tensor
    labels: Tensor
    companion: nn.Module | None = None


class WeakSignal(Protocol):
    """``states``: the blocks before which the strong pass must keep its state."""

    states: tuple[int, ...]

    def acts(self, level: Tensor, null: Tensor) -> Tensor:
        """At which samples there is a difference to extrapolate, [B] bool: level [B] flow noise levels, null [B] bool."""

    def passes(self, level: Tensor) -> Tensor:
        """At which of them a forward is needed, [B] bool; at the others :meth:`head` has the weak output."""

    def blocks(self, spec: SiTSpec) -> int:
        """Blocks of the network that such a forward runs."""

    def head(self, strong: Strong) -> Tensor | None:
        """The weak output [B, C_out, H, W] that the strong pass has anyway, detached; None if it has none."""

    def forward(self, strong: Strong, rows: Tensor) -> Tensor:
        """The weak output [K, C_out, H, W] of the samples ``rows`` [K]."""


class _Passes:
    """A signal that needs a forward wherever it acts."""

    states: tuple[int, ...] = ()

    def acts(self, level: Tensor, null: Tensor) -> Tensor:
        return torch.ones_like(null)

    def passes(self, level: Tensor) -> Tensor:
        return torch.ones_like(level, dtype=torch.bool)

    def blocks(self, spec: SiTSpec) -> int:
        return spec.depth

    def head(self, strong: Strong) -> Tensor | None:
        return None


class Uncond(_Passes):
    """The same network under the null label (model guidance); a sample whose label was dropped is that already."""

    def acts(self, level: Tensor, null: Tensor) -> Tensor:
        return ~null

    @torch.no_grad()
    def forward(self, strong: Strong, rows: Tensor) -> Tensor:
        null = torch.full_like(strong.labels[rows], strong.network.spec.null_label)
        return strong.network(strong.x[rows], strong.time[rows], null)


class LayerSkip(_Passes):
    """The same network with blocks bypassed; what lies before the first of them is the strong pass's own."""

    def __init__(self, layers: Sequence[int]):
        self.layers = tuple(layers)
        self.states = (self.layers[0],)

    def blocks(self, spec: SiTSpec) -> int:
        return spec.depth - self.layers[0] - len(self.layers)

    @torch.no_grad()
    def forward(self, strong: Strong, rows: Tensor) -> Tensor:
        (first,), found = self.states, strong.found
        state, modulation = found.states[first].detach()[rows], found.modulation.detach()[rows]
        return strong.network.rest(state, modulation, first, self.layers, *strong.x.shape[-2:])


class Separate(_Passes):
    """A smaller network, trained alongside on the plain loss."""

    def blocks(self, spec: SiTSpec) -> int:
        return 0  # of this network

    @torch.no_grad()
    def forward(self, strong: Strong, rows: Tensor) -> Tensor:
        if strong.companion is None:
            raise ValueError("the weak signal 'separate' needs the network that is trained alongside, got none")
        return strong.companion(strong.x[rows], strong.time[rows], strong.labels[rows])


class Branch:
    """The early-exit head after ``layer`` blocks: no further forward."""

    states: tuple[int, ...] = ()

    def __init__(self, layer: int):
        self.layer = layer

    def acts(self, level: Tensor, null: Tensor) -> Tensor:
        return torch.ones_like(null)

    def passes(self, level: Tensor) -> Tensor:
        return torch.zeros_like(level, dtype=torch.bool)

    def blocks(self, spec: SiTSpec) -> int:
        return 0

    def head(self, strong: Strong) -> Tensor | None:
        return strong.found.exits[self.layer].detach()

    def forward(self, strong: Strong, rows: Tensor) -> Tensor:
        raise ValueError("the early-exit head needs no forward of its own")


class Segmented(Branch):
    """SGG: the null label at noise levels from ``tau`` up, the early-exit head below."""

    def __init__(self, layer: int, tau: float):
        super().__init__(layer)
        self.tau, self.above = tau, Uncond()

    def acts(self, level: Tensor, null: Tensor) -> Tensor:
        return (level < self.tau) | self.above.acts(level, null)

    def passes(self, level: Tensor) -> Tensor:
        return level >= self.tau

    def blocks(self, spec: SiTSpec) -> int:
        return self.above.blocks(spec)

    def forward(self, strong: Strong, rows: Tensor) -> Tensor:
        return self.above.forward(strong, rows)


def weak_signal(objective: Objective, spec: SiTSpec) -> WeakSignal | None:
    """The weak signal of an objective for a network; None for ``none``.

    Raises ``ValueError`` for blocks or a head that the network does not have.
    """
    if objective.weak == "uncond":
        return Uncond()
    if objective.weak == "separate":
        return Separate()
    if objective.weak == "layer-skip":
        return LayerSkip(_skipped(objective, spec))
    if objective.weak == "branch":
        return Branch(_exit(objective, spec))
    if objective.weak == "segmented":
        return Segmented(_exit(objective, spec), objective.tau)
    return None


def _skipped(objective: Objective, spec: SiTSpec) -> tuple[int, ...]:
    layers = objective.layers or usual_numbers(spec, "slg")["layers"]
    if layers[-1] >= spec.depth:
        raise ValueError(f"objective layers name block {layers[-1]}: {spec.name} has blocks 0 to {spec.depth - 1}")
    return layers


def _exit(objective: Objective, spec: SiTSpec) -> int:
    known = ", ".join(map(str, spec.exits)) or "none"
    if objective.layer is None and len(spec.exits) == 1:
        return spec.exits[0]
    if objective.layer not in spec.exits:
        asked = "no layer" if objective.layer is None else f"layer {objective.layer}"
        raise ValueError(
            f"the weak signal {objective.weak!r} reads an early-exit head, and {asked} was given that is one of {spec.name}'s: "
            f"{known}"
        )
    return objective.layer
