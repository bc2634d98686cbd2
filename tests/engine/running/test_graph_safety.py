"""A step could be captured once and replayed: same operations on the same storages, nothing kept, nothing asked of the host.

Every architecture, with a second network for autoguidance, every live set, solver and dtype.
"""

import pytest
import torch
from live_sets import (
    ARCHITECTURES,
    CLASS_LABEL,
    SOLVER_KINDS,
    engine_of,
    every_branch,
    live_sets,
    load,
    many_branches,
    networks,
)
from step_trace import OnDevice, check_step
from tiny_models import tiny_sit

from segue import APG, CFG, Engine, SkipLayer
from segue.engine.core import resolve_plan
from segue.engine.running.program import Program
from segue.engine.running.program_key import ProgramKey
from segue.kernels import triton_runtime
from segue.kernels.record import REFERENCE, TRITON

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
META = torch.device("meta")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_live_sets(architecture, solver, most, dtype=torch.float32, channels=None, sets=None, refresh=1) -> int:
    """Check the steps of a program that holds every branch; returns the live sets checked."""
    engine = engine_of(architecture, device="cpu", dtype=dtype)
    plan = engine.plan(every_branch(engine.spec, channels).reused(refresh), steps=4, solver=solver)
    program = load(engine, plan, batch=2)
    chosen = list(live_sets(plan, most)) if sets is None else sets(plan)
    for live in chosen:
        assert len(check_step(program, live).operations) > 50
    return len(chosen)


def all_branches(plan) -> list[tuple[int, ...]]:
    return [tuple(range(len(plan.branches)))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_branch_alone_and_all_together(architecture):
    assert check_live_sets(architecture, "euler-maruyama", most=1) > 7


@pytest.mark.parametrize("solver", SOLVER_KINDS)
@pytest.mark.parametrize("architecture", ["sit", "sd3.5-medium"])
def test_every_kind_of_solver(architecture, solver):
    check_live_sets("dit" if solver == "ddpm" else architecture, solver, None, sets=all_branches)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_dtype(architecture, dtype):
    check_live_sets(architecture, "euler-maruyama", None, dtype, sets=all_branches)


@pytest.mark.parametrize("architecture", ["dit", "sd3.5-medium"])
def test_a_rule_that_guides_some_channels(architecture):
    """Branches are then combined after the projection."""
    check_live_sets(architecture, "euler", most=1, channels=2)


@pytest.mark.parametrize("architecture", ["dit", "sd3.5-medium"])
def test_directions_that_are_kept_lie_in_a_buffer_of_the_program(architecture):
    check_live_sets(architecture, "heun", most=1, refresh=2)


@pytest.mark.parametrize("architecture", ["sit", "dit", "sd3.5-medium"])
def test_numbers_of_every_sample_lie_in_tables_of_its_own(architecture):
    """As what all samples share does: with directions kept, noise inside the step and a correction too."""
    engine = engine_of(architecture, device="cpu")
    rule = every_branch(engine.spec)
    rules = [rule.reused(2), SkipLayer(1.0, (1,)), None]
    if architecture != "sit":
        rules = [CFG(2.0) + APG(0.1, 3.0, 0.5), CFG(3.0) + SkipLayer(1.0, (1,)), None]
    program = load(engine, engine.plan(rules, steps=4, solver="euler-maruyama"), batch=3)
    assert len(program.call_table.rows) == 3
    for live in live_sets(program.plan, 1):
        assert len(check_step(program, live).operations) > 50


@pytest.mark.parametrize("architecture", ["sit", "sd3"])
def test_more_branches_than_one_kernel_combines(architecture):
    engine = engine_of(architecture, device="cpu")
    program = load(engine, engine.plan(many_branches(engine.spec), steps=4), batch=2)
    check_step(program, tuple(range(len(program.plan.branches))))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_live_set(architecture):
    others = 8 if architecture in CLASS_LABEL else 6
    assert check_live_sets(architecture, "euler-maruyama", most=None) == 2**others


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("solver", SOLVER_KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_of_solver_in_every_dtype(architecture, solver, dtype):
    check_live_sets("dit" if solver == "ddpm" else architecture, solver, most=0, dtype=dtype)


# --- what a CPU cannot show: the device is another one than the host ---------------------------------------------------


def on_meta(architecture: str, kernels, solver: str = "euler-maruyama", dtype=torch.bfloat16) -> Program:
    """A program whose buffers and weights are on the meta device: it has no values, and the CPU is its host."""
    models = {name: network.to(META, dtype) for name, network in networks(architecture).items()}
    specs = {name: network.spec for name, network in models.items()}
    plan = resolve_plan(specs, every_branch(specs["main"]), 4, solver=solver)
    return Program(ProgramKey.of(plan, 2), plan, models, META, kernels)


def check_on_meta(architecture: str, dtype, most: int) -> None:
    program = on_meta(architecture, REFERENCE, dtype=dtype)
    for live in live_sets(program.plan, most):
        with OnDevice(META):
            program.step(live)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=dtype_name)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_value_and_no_tensor_crosses_between_device_and_host(architecture, dtype):
    check_on_meta(architecture, dtype, most=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nor_for_any_branch_in_any_dtype(architecture, dtype):
    check_on_meta(architecture, dtype, most=1)


@pytest.mark.skipif(triton_runtime.triton is None, reason="needs Triton")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nor_with_triton_kernels(architecture):
    """Launches are recorded instead of run, so that nothing but the launchers' own PyTorch operations is left."""
    program = on_meta(architecture, TRITON)
    for live in live_sets(program.plan, 1):
        with OnDevice(META), triton_runtime.trace_launches("sm_90") as launches:
            program.step(live)
        assert len(launches) > 15


# --- the checks can fail -----------------------------------------------------------------------------------------------


def reads_a_value(program, state):
    if program.x.sum().item() > 1e9:
        program.x.zero_()


def chooses_by_a_value(program, state):
    if (program.call > 100).any():
        program.x.zero_()


def has_a_shape_that_depends_on_data(program, state):
    program.x[0, 0, 0, 0] += program.x[program.x > 0].sum()


def keeps_an_allocation(program, state):
    state["kept"] = program.x * 2


def replaces_a_buffer(program, state):
    program.history = program.history + 0


def counts_on_the_host(program, state):
    state["calls"] = state.get("calls", 0) + 1
    program.x.mul_(1 + state["calls"] * 1e-3)


def alternates(program, state):
    state["odd"] = not state.get("odd", False)
    if state["odd"]:
        program.x.add_(0.0)


def makes_a_constant_of_host_data(program, state):
    program.x.mul_(torch.tensor([0.5], device=program.device))


UNSAFE = {
    reads_a_value: "the host takes part: aten._local_scalar_dense",
    chooses_by_a_value: "the host takes part: aten._local_scalar_dense",
    has_a_shape_that_depends_on_data: "the host takes part|two steps differ",
    keeps_an_allocation: "allocations outlive the step: new",
    replaces_a_buffer: "allocations outlive the step: new",
    counts_on_the_host: "two steps differ: .*aten.mul_",
    alternates: "operations, then one of",
    makes_a_constant_of_host_data: "a tensor is made from data of the host",
}


@pytest.fixture
def program():
    engine = Engine(tiny_sit(depth=2, exits=()), device="cpu")
    return load(engine, engine.plan(CFG(3.0), steps=4), batch=2)


def with_extra(program, extra):
    """The program with ``extra`` at the end of its step."""
    step, state = program.step, {}

    def longer(live):
        step(live)
        extra(program, state)

    program.step = longer
    return program


@pytest.mark.parametrize("unsafe", UNSAFE, ids=lambda function: function.__name__)
def test_an_unsafe_step_is_caught(program, unsafe):
    check_step(program, (0, 1))
    with pytest.raises(AssertionError, match=UNSAFE[unsafe]):
        check_step(with_extra(program, unsafe), (0, 1))


def copies_to_the_host(program, state):
    program.x.cpu()


def makes_a_constant_on_the_host(program, state):
    program.x.mul_(torch.tensor(0.5))


def lists_the_counter(program, state):
    program.call.tolist()


@pytest.mark.parametrize(
    "unsafe",
    [
        copies_to_the_host, makes_a_constant_on_the_host, lists_the_counter,
        reads_a_value, chooses_by_a_value, has_a_shape_that_depends_on_data,
    ],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_a_step_that_needs_the_host_is_caught(unsafe):
    program = with_extra(on_meta("sit", REFERENCE), unsafe)
    with OnDevice(META), pytest.raises((AssertionError, RuntimeError, NotImplementedError)) as caught:
        program.step((0, 1))
    assert any(entry.name == unsafe.__name__ for entry in caught.traceback), "something else failed"


# --- the numbers of a step come from its tables ------------------------------------------------------------------------


def test_a_step_reads_its_numbers_from_the_tables():
    """Changing a table between two steps changes the step: nothing was baked in."""
    engine = Engine(tiny_sit(), device="cpu")
    noise = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    results = []
    for scale in (3.0, 5.0):
        program = engine.load(engine.plan(CFG(scale), steps=8), [0, 4], [1, 2], noise)
        program.step((0, 1))
        results.append(program.x.clone())
    assert (results[0] - results[1]).abs().max() > 1e-3


def test_samples_may_stand_at_different_calls():
    """The counter is per sample: a step over two samples at different calls equals two steps over one."""
    engine = Engine(tiny_sit(), device="cpu")
    plan = engine.plan(CFG(3.0), steps=8)
    noise = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    program = engine.load(plan, [0, 4], [1, 2], noise)
    program.call.copy_(torch.tensor([2, 5]))
    program.step((0, 1))
    mixed = program.x.clone()
    assert program.call.tolist() == [3, 6]
    for i, call in enumerate((2, 5)):
        program = engine.load(plan, [0, 4], [1, 2], noise)
        program.call.fill_(call)
        program.step((0, 1))
        assert torch.equal(program.x[i], mixed[i])
