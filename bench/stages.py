"""The last stages of the waterfall: what the engine adds to a plan that already does no superfluous work."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from segue.engine.core import EngineCore
from segue.engine.linears import check_linears
from segue.engine.planning.plan import Plan
from segue.engine.running.graph import CudaCapture
from segue.engine.running.program import Program
from segue.engine.running.program_key import ProgramKey
from segue.engine.running.sampler import run_program
from segue.kernels.choice import ByClass, dependent
from segue.kernels.dispatch import HEAD_PRODUCTS, WITHOUT_KERNEL, Selection
from segue.kernels.record import REFERENCE, Kernels
from segue.kernels.triton_runtime import dependent_obstacle

from .cases import Workload

FP8 = "+ fp8 linears"
REUSE = "+ directions reused once"
APPROXIMATE = (FP8, REUSE)  # every other stage computes the same function
EXACT = "engine, exact"
WITH_HEADS = "+ heads in the product"
FP8_ALONE, REUSE_ALONE = "fp8 linears alone", "directions reused once alone"
DEPENDENT_ALONE = "dependent launches alone"  # the exact engine's numbers: its error is measured to be none
ALONE = (FP8_ALONE, REUSE_ALONE, DEPENDENT_ALONE)


def program_draw(
    workload: Workload, plan: Plan, kernels: Kernels, graphs: bool, engine: EngineCore | None = None
) -> Callable[[], Tensor]:
    """A function that draws the batch with these kernels, captured or not; returns [B, C, H, W] fp32.

    ``engine`` replaces the workload's: the same networks with other linears.
    """
    engine = engine or workload.engine
    program = Program(ProgramKey.of(plan, workload.batch), plan, engine.models, engine.device, kernels)
    if graphs:
        program.use_graphs(CudaCapture(engine.device))
    conditions, state, seeds = workload.conditions(plan), workload.state(plan), list(range(workload.batch))

    def draw() -> Tensor:
        program.load(plan, state, conditions, seeds)
        run_program(program)
        return program.x

    return draw


def fp8_engine(workload: Workload, echo: Callable[[str], None]) -> EngineCore | None:
    """The workload's networks with fp8 linears beside their own; None, with the reason, where they cannot be."""
    engine = workload.engine
    networks = dict(engine.models)
    try:
        check_linears("fp8", engine.device, engine.dtype)
        return EngineCore(networks.pop("main"), networks, engine.device, engine.dtype, linears="fp8")
    except ValueError as error:
        echo(f"fp8: not run, {error}")
        return None


def split_apart(kernels: Kernels) -> Kernels:
    """The same with heads split by a kernel of their own, also where a product that leaves them split was chosen by class."""
    chosen = {name: getattr(kernels, name) for name in HEAD_PRODUCTS}
    return replace(kernels, **{name: by.default for name, by in chosen.items() if isinstance(by, ByClass)})


def has_kernels(selection: Selection) -> bool:
    """Whether any operation is served by something else than the reference functions, which follow plain PyTorch."""
    plain = {"reference", *(backend for backend, _ in WITHOUT_KERNEL.values())}
    return bool(selection.classes) or any(backend not in plain for backend, _ in selection.chosen.values())


def engine_stages(
    workload: Workload, plan: Plan, fp8: EngineCore | None, echo: Callable[[str], None]
) -> dict[str, Callable[[], Tensor]]:
    """Stages by name, cumulative; a stage that this machine or this engine does not have is reported and left out.

    ``fp8`` is an engine of the same networks with fp8 linears, whose stage is an approximation.
    """
    engine, kernels, last = workload.engine, workload.engine.selection.kernels, workload.engine
    on_cuda = engine.device.type == "cuda"
    stages = {"engine, plain kernels": program_draw(workload, plan, REFERENCE, graphs=False)}
    if not has_kernels(engine.selection):
        kernels = REFERENCE
        echo(f"stage fused kernels: not run, {'; '.join(engine.selection.explain())}")
    else:
        stages["+ fused kernels"] = program_draw(workload, plan, split_apart(kernels), graphs=False)
    if not on_cuda:
        echo(f"stage graph: not run, it needs a CUDA device and this is {engine.device}")
    else:
        stages["+ graph"] = program_draw(workload, plan, split_apart(kernels), graphs=True)
    if split_apart(kernels) != kernels:
        stages[WITH_HEADS] = program_draw(workload, plan, kernels, graphs=on_cuda)
    if fp8 is not None and not on_cuda:
        echo(f"stage fp8: not run, on {engine.device} the reference computes its numbers, not its speed")
    elif fp8 is not None:
        kernels, last = fp8.selection.kernels, fp8
        stages[FP8] = program_draw(workload, plan, kernels, graphs=True, engine=fp8)
    reused = reusing(workload, plan)
    if reused.cost.evaluations == plan.cost.evaluations:
        echo(f"stage reuse: not run, in {plan.calls} calls no direction is used twice")
    else:
        stages[REUSE] = program_draw(workload, reused, kernels, graphs=on_cuda, engine=last)
    return stages


def alone_draws(
    workload: Workload, plan: Plan, fp8: EngineCore | None, echo: Callable[[str], None]
) -> dict[str, Callable[[], Tensor]]:
    """The engine as it is by default, exact, and with each option that is off by itself; one that is not here is reported."""
    engine = workload.engine
    on_cuda = engine.device.type == "cuda"
    draw = partial(program_draw, workload, graphs=on_cuda)
    draws = {EXACT: draw(plan=plan, kernels=engine.selection.kernels)}
    if fp8 is not None and on_cuda:  # elsewhere the reference computes its numbers, not its speed
        draws[FP8_ALONE] = draw(plan=plan, kernels=fp8.selection.kernels, engine=fp8)
    if obstacle := dependent_obstacle(engine.device):
        echo(f"{DEPENDENT_ALONE}: not run, {obstacle}")
    else:
        draws[DEPENDENT_ALONE] = draw(plan=plan, kernels=dependent(engine.selection.kernels))
    reused = reusing(workload, plan)
    if reused.cost.evaluations == plan.cost.evaluations:
        echo(f"{REUSE_ALONE}: not run, in {plan.calls} calls no direction is used twice")
    else:
        draws[REUSE_ALONE] = draw(plan=reused, kernels=engine.selection.kernels)
    return draws


def reusing(workload: Workload, plan: Plan) -> Plan:
    """The plan with every guidance direction used for two calls: an approximation."""
    return workload.plan(plan.guidance.reused(2), plan.calls)
