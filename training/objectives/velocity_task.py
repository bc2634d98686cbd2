"""Training a network to sample by: noised samples, a regression with or without a weak signal, and the terms beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segue.models.projectors import SiTWithProjectors
from segue.models.sit import Pass, SiT
from segue.models.spec import SiTSpec
from segue.models.weights import save_model
from segue.models.wrapped_modules import unwrapped

from .label_dropout import LabelDropout
from .learned_variance import VARIANCE_COLUMNS, variance_loss, variance_table
from .noising import Noising, Times, noised
from .objective import Objective
from .representation import Representation, representation_loss
from .velocity_loss import Pulled, head_losses, regression_error, wide
from .weak_rows import WeakRows
from .weak_signals import Strong, WeakSignal, weak_signal


class VelocityDraw(NamedTuple):
    """One batch, all that its losses depend on: tensors on the CPU, which belong together and are not to be cut.

    x0, eps [B, C, H, W]; labels [B] int64, some dropped; time [B] as the network takes it; table [B, 4 or 8], see
    :class:`.noising.Times`; weight [B], W where the weak signal acts and 0 elsewhere; below [B] bool, where its output is that
    of a head; rows [K] and slot [B] int64 of :class:`.weak_rows.WeakRows`; features [B, L, Z], or [0].
    """

    x0: Tensor
    labels: Tensor
    time: Tensor
    eps: Tensor
    table: Tensor
    weight: Tensor
    below: Tensor
    rows: Tensor
    slot: Tensor
    features: Tensor


@dataclass(frozen=True)
class VelocityTask:
    """Regression of a network's own output, a velocity or noise, with early exits of ``exit_weight`` trained alongside.

    ``padded`` keeps the number of distinct shapes small, for graphs and compilation, at the cost of a few rows.  Raises
    ``ValueError`` for an objective that the network cannot follow.
    """

    spec: SiTSpec
    dropout: LabelDropout
    exit_weight: float
    objective: Objective = field(default_factory=Objective)
    padded: bool = False
    representation: Representation | None = None

    def __post_init__(self):
        spec, weak = self.spec, self.objective.weak
        if self.dropout.everything == 1 and weak in ("uncond", "segmented"):
            raise ValueError(
                f"the weak signal {weak!r} is the null label, and all labels are null (label dropout everything 1): use none, "
                "layer-skip, branch or separate"
            )
        if self.dropout.species and not spec.parents:
            raise ValueError(f"label dropout species {self.dropout.species} needs superclasses, and {spec.name} has none")
        if spec.prediction == "epsilon" and spec.out_channels not in (spec.channels, 2 * spec.channels):
            raise ValueError(
                f"{spec.name} has {spec.out_channels} output channels for {spec.channels}; a network of noise has as many, or "
                "twice as many: noise and variance"
            )
        if self.representation is not None and self.representation.layer > spec.depth:
            raise ValueError(
                f"the representation is read after block {self.representation.layer}, and {spec.name} has {spec.depth} blocks"
            )
        _ = self.signal, self.noising  # their refusals belong to the beginning

    @cached_property
    def signal(self) -> WeakSignal | None:
        """What the output is extrapolated away from."""
        return weak_signal(self.objective, self.spec)

    @cached_property
    def noising(self) -> Noising:
        """Where samples stand on the path."""
        return Noising(self.spec, self.objective)

    @property
    def learns_variance(self) -> bool:
        """Whether the second half of the output is a range of variances, as in DiT."""
        return self.spec.prediction == "epsilon" and self.spec.out_channels == 2 * self.spec.channels

    # --- networks --------------------------------------------------------------------------------------------------------

    def network(self) -> SiT:
        """A new network, initialised from the default generator; with projectors if there is a representation to align with."""
        term = self.representation
        if term is None:
            return SiT(self.spec).initialize()
        return SiTWithProjectors(self.spec, term.layer, term.dims, term.width).initialize()

    def companion(self) -> SiT | None:
        """The smaller network of the weak signal ``separate``: heads of the same width, fewer of them, and fewer blocks."""
        if self.objective.weak != "separate":
            return None
        return SiT(companion_spec(self.spec, self.objective)).initialize()

    def write(self, network: nn.Module, path: Path, header: Mapping[str, str]) -> None:
        """Save a network; projectors lie beside it under REPA's names, and loading for sampling leaves them."""
        save_model(network, path, header)

    # --- a step ----------------------------------------------------------------------------------------------------------

    def draw(self, x0: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 0.0) -> VelocityDraw:
        """Labels, times and noise for samples x0 [B, C, H, W] and labels [B], when ``progress`` of the run is done."""
        labels = self.dropout(labels, self.spec, generator)
        times = self.noising.draw(len(x0), generator)
        return self.draw_at(x0, labels, times, torch.randn(x0.shape, generator=generator), progress)

    def draw_at(self, x0: Tensor, labels: Tensor, times: Times, eps: Tensor, progress: float = 0.0) -> VelocityDraw:
        """The batch of given times and noise eps [B, C, H, W], of labels [B] that are not dropped any more."""
        table = times.table
        if self.learns_variance and times.index is not None:
            bound = variance_table(times.index, self.noising.parameterization)
            table = torch.cat([table, bound.to(table.dtype)], dim=1)
        weight = self.objective.weight_at(progress)
        acts, below = self._acting(labels, times.level)
        needed = acts & ~below if weight else torch.zeros_like(acts)
        rows = WeakRows.of(needed, self.padded)
        features = torch.empty(0)
        if self.representation is not None:
            features = self.representation.of(x0, self.spec.tokens(*x0.shape[-2:]))
        weights = acts.to(x0.dtype) * weight
        return VelocityDraw(x0, labels, times.network, eps, table, weights, below, rows.rows, rows.slot, features)

    def _acting(self, labels: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Where the weak signal acts [B], and where its output is that of a head [B]."""
        if self.signal is None:
            nowhere = torch.zeros_like(labels, dtype=torch.bool)
            return nowhere, nowhere
        acts = self.signal.acts(level, labels == self.spec.null_label) & (level <= self.objective.high)
        return acts, acts & ~self.signal.passes(level)

    def losses(self, model: nn.Module, drawn: tuple[Tensor, ...], companion: nn.Module | None = None) -> dict[str, Tensor]:
        """Means over the batch: ``loss``, of which gradients are taken, and its parts.

        ``velocity`` (``noise`` of a network that predicts it) is the regression; ``exit<layer>`` and ``agreement`` are those of
        :func:`.velocity_loss.head_losses`, in units of the regression; ``variance`` is that of
        :mod:`.learned_variance`, ``representation`` that of :mod:`.representation`.
        """
        draw, channels = VelocityDraw(*drawn), self.spec.channels
        x, target = noised(draw.x0, draw.eps, draw.table)
        found: Pass = model(x, draw.time, draw.labels, exits=True, states=self.signal.states if self.signal else ())
        output = wide(found.output[:, :channels])
        pulled = self._pulled(Strong(unwrapped(model), found, x, draw.time, draw.labels, companion), draw)
        error = regression_error(output, target, pulled, self.objective.target == "inverse")
        heads = {layer: head[:, :channels] for layer, head in found.exits.items()}
        beside = head_losses(heads, output, target, self._agreeing, draw.below)
        name = "noise" if self.spec.prediction == "epsilon" else "velocity"
        losses = {name: error.square().mean(), **beside}
        loss = losses[name] + self.exit_weight * sum(beside.values())
        if self.learns_variance:
            numbers = draw.table[:, -VARIANCE_COLUMNS:]
            variance = wide(found.output[:, channels:])
            losses["variance"] = variance_loss(variance, output, draw.x0, draw.eps, draw.table, numbers)
            loss = loss + losses["variance"]
        if self.representation is not None:
            losses["representation"] = representation_loss(found.projections, draw.features)
            loss = loss + self.representation.weight * losses["representation"]
        return losses | {"loss": loss}

    @property
    def _agreeing(self) -> int | None:
        """The head that the released code of SGG does not fit below the switch."""
        released = self.objective.mode == "released" and self.objective.weak == "segmented"
        return getattr(self.signal, "layer", None) if released else None

    def _pulled(self, strong: Strong, draw: VelocityDraw) -> Pulled | None:
        """The weak output of every sample, from the strong pass, a forward of some, or both; None if there is neither."""
        if self.signal is None:
            return None
        head, gathered = self.signal.head(strong), None
        if draw.rows.shape[0]:
            gathered = self.signal.forward(strong, draw.rows)[draw.slot]
        if head is not None and gathered is not None:
            head = torch.where(draw.below[:, None, None, None], wide(head), wide(gathered))
        weak = gathered if head is None else head
        return None if weak is None else Pulled(wide(weak[:, : self.spec.channels]), draw.weight)

    def companion_losses(self, companion: nn.Module, drawn: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The plain loss of the smaller network on the same batch."""
        return self._plain.losses(companion, drawn)

    @cached_property
    def _plain(self) -> "VelocityTask":
        plain = Objective(path=self.objective.path, time=self.objective.time)
        return replace(self, spec=companion_spec(self.spec, self.objective), objective=plain, representation=None)


def companion_spec(spec: SiTSpec, objective: Objective) -> SiTSpec:
    """The smaller network beside ``spec``, which has no early exits."""
    heads = max(1, round(spec.heads * objective.companion_width))
    depth = max(1, round(spec.depth * objective.companion_depth))
    return replace(spec, name=f"{spec.name}-weak", dim=heads * spec.head_dim, heads=heads, depth=depth, exits=())
