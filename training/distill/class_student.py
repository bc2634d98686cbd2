"""A DiT or SiT as teacher and student, and its adapter's file."""

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from segue.engine.engine import Engine
from segue.engine.planning.plan import Plan
from segue.models.adapted import AdaptedSiT
from segue.models.adapter_file import AdapterFacts, save_adapter
from segue.models.sit import SiT
from segue.models.wrapped_modules import unwrapped

from .spec import DistillSpec
from .teacher import Teacher


def class_teacher(engine: Engine, plan: Plan) -> Teacher:
    """The teacher that samples classes by an engine."""

    def denoiser(rule, labels, schedule):
        return engine.denoiser(rule, list(labels), schedule=schedule, height=plan.height, width=plan.width)

    return Teacher(plan, denoiser)


class ClassStudent:
    """Copies of a network in fp32, each with an adapter; ``metadata`` is written beside every one of them."""

    def __init__(self, network: SiT, spec: DistillSpec, plan: Plan, metadata: Mapping[str, str] | None = None):
        dict(spec.adapter.shapes(network))  # refuses layers and ranks before any work
        self._network, self.spec, self.plan, self.metadata = network, spec, plan, dict(metadata or {})

    def network(self) -> AdaptedSiT:
        return AdaptedSiT(copy.deepcopy(self._network).float().eval(), self.spec.adapter)

    def conditions(self, labels: Tensor, scale: Tensor | None) -> tuple[Tensor, ...]:
        return (labels,) if scale is None else (labels, scale)

    def write(self, network: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the adapter in half precision; ``metadata`` goes into its header."""
        spec, plan = self.spec, self.plan
        facts = AdapterFacts(
            model=self._network.spec.name,
            weights=spec.weights,
            rule=spec.rule,
            steps=plan.schedule.steps,
            solver=plan.solver.name,
            sigmas=tuple(plan.schedule.sigmas),
            spec=spec.adapter,
        )
        save_adapter(unwrapped(network), path, facts, {**(metadata or {}), **self.metadata})
