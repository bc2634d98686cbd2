"""The last stages of the waterfall: what the engine adds to a plan that already does no superfluous work."""

from collections.abc import Callable

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
    """Stages by name, cumulative; a stage that this machine or this engine does not have is reported and left out."""
    engine = workload.engine
    stages = {"engine, plain kernels": program_draw(workload, plan, REFERENCE, graphs=False)}
    if engine.selection.kernels == REFERENCE or engine.device.type != "cuda":
        echo(f"stage fused kernels: not run, {'; '.join(engine.selection.explain())}")
    else:
        stages["+ fused kernels"] = program_draw(workload, plan, engine.selection.kernels, graphs=False)
    if engine.device.type != "cuda":
        echo(f"stage graph: not run, it needs a CUDA device and this is {engine.device}")
    else:
        stages["+ graph"] = program_draw(workload, plan, engine.selection.kernels, graphs=True)
    echo("stages fp8 and reuse: not run, the engine has neither fp8 layers nor reused guidance directions")
    return stages
