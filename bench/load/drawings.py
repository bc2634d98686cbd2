"""Requests of a load as a scheduler draws them, and what the engine makes of each alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from segue.engine.scheduling.drawing import Drawing, Start

from ..cases import BenchModel, Workload, random_conditions
from ..session import Session
from ..workloads import in_single, load_workload
from .arrivals import Kind


@dataclass(frozen=True)
class Drawings:
    """Runs of one model, planned when they are asked for, as a server does."""

    workload: Workload

    @classmethod
    def load(cls, session: Session, model: BenchModel) -> "Drawings":
        """The model on the device and in the dtype of the session."""
        return cls(load_workload(session, model, 1))

    @property
    def engine(self) -> Any:
        return self.workload.engine

    def in_single(self) -> "Drawings":
        """The same with weights in fp32."""
        return Drawings(in_single(self.workload))

    def make(self, kind: Kind, seed: int) -> Drawing:
        """A request of this kind; label or prompt follow from the seed."""
        engine = self.engine
        plan = self.workload.plan(self.workload.model.rule(kind.rule), kind.steps)

        def begin() -> Start:
            noise = engine.draw_noise(plan, [seed]) * plan.parameterization.prior_scale(float(plan.sigmas[0]))
            conditions = random_conditions(engine.spec, plan.conditions, 1, engine.device, engine.dtype, first=seed)
            return Start(conditions, noise)

        return Drawing(plan, seed, begin, lambda latents: latents, lambda latents: latents)

    @property
    def understand(self) -> Callable[..., Drawing]:
        """How a scheduler understands an :class:`.arrivals.Arrival`."""
        return lambda arrival, _guidance=None: self.make(arrival.kind, arrival.seed)

    def alone(self, kind: Kind, seed: int) -> Tensor:
        """What the engine makes of a request by itself, planning included; [1, C, H, W] fp32."""
        drawing = self.make(kind, seed)
        return self.engine.run(drawing.plan, drawing.start.conditions, [seed], drawing.start.state)[0]

    def flops(self, kind: Kind) -> float:
        """The work of one request, by its plan."""
        return float(self.workload.model.plan(kind.rule, kind.steps).cost.flops)
