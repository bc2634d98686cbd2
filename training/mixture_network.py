"""A network of an engine whose output is known: the exact velocity of a Gaussian mixture, for any rule, solver and branch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segue.kernels.record import REFERENCE
from segue.models.read_rows import StateUpdate
from segue.models.rows import FULL, RowLayout
from segue.models.spec import SiTSpec
from segue.models.start_rows import Clock

from .leaf_trees import leaf_mixture


class PlaneVelocity(Protocol):
    """What gives the velocity of labelled points of the plane: a mixture, or anything that was fitted to one."""

    @property
    def num_classes(self) -> int: ...

    @property
    def parents(self) -> tuple[int, ...]: ...

    def velocity(self, x: Tensor, sigma: float | Tensor, labels: int | Tensor) -> Tensor:
        """x [B, 2], noise levels a number or [B], labels as the mixture numbers them -> [B, 2] fp64."""


class MixtureNetwork(nn.Module):
    """Points of the plane as latents [B, 2, 1, 1]; ``levels[i]`` is the mixture that the network knows after ``i + 1`` blocks.

    Any :class:`PlaneVelocity` will do for a mixture.  All but the last are its early exits, so a shallower one is a
    weak branch (``EarlyExit``); a broader one is a weak network of its own (``AutoGuidance``).  A plan's cost in FLOPs means
    nothing here.
    """

    def __init__(self, levels: Sequence[PlaneVelocity], name: str = "mixture"):
        super().__init__()
        if not levels:
            raise ValueError("a network of mixtures needs at least one, got none")
        classes = {(mixture.num_classes, mixture.parents) for mixture in levels}
        if len(classes) > 1:
            raise ValueError(f"the mixtures of a network must have the same classes, got {sorted(classes)}")
        self.levels, last = tuple(levels), levels[-1]
        self.spec = SiTSpec(
            name=name,
            channels=2,
            height=1,
            width=1,
            patch=1,
            dim=2,
            depth=len(levels),
            heads=1,
            prediction="velocity",
            time="sigma",
            exits=tuple(range(1, len(levels))),
            num_classes=last.num_classes,
            parents=last.parents,
        )

    def rows(self, batch: int, height: int, width: int, **capacity: Any) -> "MixtureRows":
        """The row-batched forward for B samples; there is nothing to allocate: of ``capacity`` the ``drawn`` labels matter."""
        if (height, width) != (1, 1):
            raise ValueError(f"a point of the plane is a latent of 1 x 1, got {height} x {width}")
        return MixtureRows(self, capacity.get("drawn"))


class MixtureRows:
    """The forward of a :class:`MixtureNetwork` over live branches, in fp64, with the interface of ``SiTRows``."""

    def __init__(self, network: MixtureNetwork, drawn: Mapping[int, Tensor] | None = None):
        self.network, self.drawn = network, dict(drawn or {})

    def remembered(self) -> Iterator[Tensor]:
        """No weights, of which :meth:`load` could keep any."""
        return iter(())

    def look_ahead(self, time: np.ndarray) -> None:
        """Nothing is computed ahead."""

    def load(self, times: Tensor, conditions: Sequence[Tensor]) -> None:
        """times [T] fp64, the distinct noise levels of a run; conditions: labels [B] int64 for each slot."""
        self.times = times
        self.conditions = [self.drawn.get(slot, labels) for slot, labels in enumerate(conditions)]

    def forward(
        self,
        x: Tensor,
        clock: Clock,
        layout: RowLayout,
        coefficients: Tensor | None,
        update: StateUpdate | None = None,
        scale: Tensor | None = None,
        opened: Tensor | None = None,
    ) -> Tensor:
        """``sum_i c_i v_i`` over the branches of ``layout``, [B, 2, 1, 1] fp32; an ``update`` is left to the caller.

        x [B, 2, 1, 1] fp32, on the CPU; coefficients [B, branches] or [B, branches, 2] fp32; None keeps the branches apart,
        [branches, B, 2, 1, 1] fp32.
        """
        sigma = self.times[clock.time_index(REFERENCE)]
        outputs = torch.stack(_velocities(self.network, x, sigma, self.conditions, layout))  # [branches, B, 2, 1, 1]
        if coefficients is None:
            return outputs.float()
        factors = coefficients if coefficients.dim() == 3 else coefficients[:, :, None]
        return (outputs * factors.double().transpose(0, 1)[..., None, None]).sum(dim=0).float()

    def recorded(
        self,
        network: MixtureNetwork,
        x: Tensor,
        time: Tensor,
        conditions: Sequence[Tensor],
        layout: RowLayout,
        scale: Tensor | None = None,
        opened: Tensor | None = None,
    ) -> list[Tensor]:
        """The outputs of the branches of ``layout``, each [B, 2, 1, 1] fp32, with gradients of ``x``.

        time [B] fp32; conditions: labels [B] int64 for each slot.
        """
        return [output.float() for output in _velocities(network, x, time.double(), conditions, layout)]


def _velocities(
    network: MixtureNetwork, x: Tensor, sigma: Tensor, conditions: Sequence[Tensor], layout: RowLayout
) -> list[Tensor]:
    """The velocity of every branch of ``layout``, [B, 2, 1, 1] fp64."""
    if x.device.type != "cpu":
        raise ValueError(f"the mixtures are computed on the CPU; make the engine with device='cpu', not on {x.device}")
    velocities = []
    for path in layout.paths:
        if any(operation != FULL for operation in path.operations):
            raise ValueError(f"a mixture has no layers to perturb, got {path.operations}; it has early exits")
        mixture = network.levels[len(path.operations) - 1]
        velocities.append(mixture.velocity(x[:, :, 0, 0], sigma, conditions[path.condition])[..., None, None])
    return velocities


def leaf_network(
    num_classes: int = 4, depth: int = 3, siblings: int = 1, *, blur: float = 0.0, confusion: float = 0.0, name: str = "leaves"
) -> MixtureNetwork:
    """A network that knows :func:`~segue.training.leaf_trees.leaf_mixture`, one level of the trees after each block.

    ``blur`` and ``confusion`` make it one with too little capacity, see
    :meth:`~segue.training.mixture.GaussianMixture.underfitted`.
    """
    levels = [
        leaf_mixture(num_classes, depth, siblings, resolved).underfitted(blur, confusion) for resolved in range(1, depth + 1)
    ]
    return MixtureNetwork(levels, name)
