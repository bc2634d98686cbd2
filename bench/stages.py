"""The last stages of the waterfall: what the engine adds to a plan that already does no superfluous work."""

from collections.abc import Callable

import torch
from torch import Tensor

from segue.engine.graph import CudaCapture
from segue.engine.plan import Plan
from segue.engine.program import Program, ProgramKey
from segue.engine.sampler import run_program
from segue.kernels.dispatch import REFERENCE, Kernels

from .cases import Workload


def program_draw(workload: Workload, plan: Plan, kernels: Kernels, graphs: bool) -> Callable[[], Tensor]:
    """A function that draws the batch with these kernels, captured or not; returns [B, C, H, W] fp32."""
    engine = workload.engine
    program = Program(ProgramKey.of(plan, workload.batch), plan, engine.models, engine.device, kernels)
    if graphs:
        program.use_graphs(CudaCapture(engine.device))
    conditions, state, seeds = workload.conditions(plan), workload.state(plan), list(range(workload.batch))

    def draw() -> Tensor:
        program.load(plan, state, conditions, seeds)
        run_program(program)
        return program.x

    return draw


def engine_stages(workload: Workload, plan: Plan, echo: Callable[[str], None]) -> dict[str, Callable[[], Tensor]]:
    """Stages by name, cumulative; a stage that this machine cannot run is reported and left out."""
    device: torch.device = workload.engine.device
    stages = {"engine, plain kernels": program_draw(workload, plan, REFERENCE, graphs=False)}
    if device.type != "cuda":
        echo(f"stages fused kernels, graph and fp8: not run, they need a CUDA device and this is {device}")
        return stages
    stages["+ graph"] = program_draw(workload, plan, REFERENCE, graphs=True)
    return stages
