"""What a real step launches is in the catalogue: compiled ahead of time, checked for spills, and tuned."""

from functools import cache

import pytest
import torch
from sweeps import first_fast

from segue.bench.cases import BenchModel
from segue.bench.census import META, meta_network
from segue.engine.core import network_shapes
from segue.engine.linears import LINEARS
from segue.engine.running.program import Program
from segue.engine.running.program_key import ProgramKey
from segue.kernels.catalogue import SIZES
from segue.kernels.dispatch import select_kernels
from segue.kernels.resources import Specialisation, traced
from segue.kernels.triton_runtime import Launch, interpreting, trace_launches, triton

pytestmark = pytest.mark.skipif(
    triton is None or interpreting(), reason="needs Triton's compiler: Triton installed, TRITON_INTERPRET not set"
)
SERVED = "sm_90"
PLAIN, GUIDED, WEAK = (0,), (0, 1), (0, 2)  # positions among the branches: one root, two, and one that forks


@cache
def catalogue() -> set[Specialisation]:
    return set(traced(SERVED))


@cache
def program(name: str, backend: str = "auto", linears: str = "native") -> Program:
    """The step of a guided run without weights, with the kernels that an H100 is given where nothing was measured.

    ``backend``: that of the projections of slices; ``linears`` of the blocks as an engine's.
    """
    plan = BenchModel.parse(name).plan("sgg", 28)
    networks = {key: meta_network(spec, torch.bfloat16, linears) for key, spec in plan.specs.items()}
    with trace_launches(SERVED):
        shapes, asked = network_shapes(networks), {"project_slices": backend}
        selection = select_kernels(torch.device("cuda"), torch.bfloat16, shapes, overrides=asked)
        return Program(ProgramKey.of(plan, 1), plan, networks, META, selection.kernels)


def launched(name: str, live: tuple[int, ...], backend: str = "auto", linears: str = "native") -> list[Launch]:
    step = program(name, backend, linears)
    with trace_launches(SERVED) as launches:
        step.step(live)
    return launches


@pytest.mark.parametrize("live", [PLAIN, GUIDED, WEAK], ids=["plain", "guided", "weak"])
@pytest.mark.parametrize("linears", LINEARS)
@pytest.mark.parametrize("name", first_fast(["sd3.5-medium", "dit-xl/2", "sd3.5-large"], 2))
def test_every_kernel_of_a_step_is_in_the_catalogue(name, linears, live):
    missing = {
        f"{launch.name} {constants(launch)}"
        for launch in launched(name, live, linears=linears)
        if Specialisation.of(launch, SERVED) not in catalogue()
    }
    assert not missing


def constants(launch: Launch) -> dict:
    return {name: value for name, value in launch.arguments.items() if name.isupper()}


def test_the_steps_are_those_of_a_run():
    """Every live set of the rule, and the forms of a kernel that only some of them have."""
    for name in ("sd3.5-medium", "dit-xl/2", "sd3.5-large"):
        assert {*program(name).plan.live_sets, PLAIN} == {PLAIN, GUIDED, WEAK}
    assert len(launched("sd3.5-medium", PLAIN)) > 100
    steps = launched("sd3.5-medium", GUIDED, "reference")  # whose projections leave a bias to the residual
    biased = [launch for launch in steps if launch.arguments.get("BIAS")]
    assert {launch.arguments["RESIDUALS"] for launch in biased} == {1, 2}
    launches = launched("dit-xl/2", PLAIN) + launched("dit-xl/2", GUIDED)
    assert {launch.arguments["ROOTS"] for launch in launches if launch.name == "embed_kernel"} == {1, 2}


def test_a_size_counts_the_modulation_of_its_network():
    """The columns of the tables that the steps of the models gather from."""
    widths = {
        "SD3.5-medium 1024": "sd3.5-medium", "SD3.5-large 1024": "sd3.5-large",
        "SD3-medium 1024": "sd3-medium", "DiT-XL/2 256": "dit-xl/2",
    }  # fmt: skip
    sizes = {size.name: size for size in SIZES}
    for size, name in widths.items():
        (gather,) = [one for one in launched(name, PLAIN) if one.name == "modulation_kernel"]
        assert gather.arguments["W"] == sizes[size].modulations * sizes[size].width
