"""What one step runs: kernels, matrix products, attention, and a short list of other operations that must not grow."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from live_sets import engine_of, load
from torch.utils._python_dispatch import TorchDispatchMode

from segue import CFG, SGG, AutoGuidance, EarlyExit, SkipLayer
from segue.engine.planning.solver_rows import Solver, SolverRow
from segue.engine.running.program import Program
from segue.engine.running.program_key import ProgramKey
from segue.kernels.dispatch import LIBRARY
from segue.kernels.record import REFERENCE, TRITON
from segue.kernels.triton_runtime import trace_launches
from segue.models.spec import ModelSpec

SEGMENTED = SGG(CFG(3.0), SkipLayer(2.0, (1,)), 0.5)
OF_SAMPLES = SGG(CFG([3.0, 4.0]), SkipLayer([2.0, 1.0], (1,)), 0.5)
# what a CUDA device runs where nothing was measured: products and attention of the vendor, every other operation a kernel
VENDOR = {operation: getattr(REFERENCE, operation) for operation in (*LIBRARY, "perturbed_attention")}
VENDOR["linear_gated_residual"] = None
VENDOR["project_heads"] = partial(REFERENCE.project_heads, split=TRITON.split_heads_norm)
VENDOR["project_joint_heads"] = partial(REFERENCE.project_joint_heads, split=TRITON.joint_heads_norm)
PRODUCTS = ("addmm", "mm", "bmm", "convolution", "gelu", "_scaled_dot_product_flash_attention_for_cpu")
ALLOCATIONS = ("empty", "_unsafe_view")
KINDS = ("sit", "dit", "sd3", "sd3.5-medium", "sd3.5-large")


class Operations(TorchDispatchMode):
    """Counts the operations that run, by name; for views and allocations nothing does."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__.rstrip("_")  # in place or not
        if not function.is_view and name not in ALLOCATIONS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def expected(spec: ModelSpec, forks: bool) -> tuple[Counter, Counter]:
    """Counts of the other operations and of the kernels, for two rows; ``forks``: the second leaves the first at a layer."""
    others, streams = Counter(), 1
    # a norm before and after each attention, and the last residual
    kernels = Counter(gather_kernel=1, modulation_kernel=1, embed_kernel=1, adaln_kernel=2 * spec.depth + 1, readout_kernel=1)
    if spec.text_tokens:
        streams = 2
        others["copy"] += 1  # the text streams start from the embedded prompts
        kernels["adaln_kernel"] += 2 * spec.depth - 1  # the last text block ends at the attention
        kernels["heads_kernel"] += spec.depth + len(spec.dual_layers)
    if forks:
        others["copy"] += streams
        kernels["adaln_kernel"] += streams * settlements(spec)
    return others, kernels


def settlements(spec: ModelSpec) -> int:
    """How often a residual is added alone because the rows of the next block are others: block 1 is skipped by the second."""
    return sum(0 < layer < spec.depth for layer in (1, 2))


@pytest.mark.parametrize("live", [(0, 1), (0, 2)], ids=["unconditional", "skipping a layer"])
@pytest.mark.parametrize("rule", [SEGMENTED, OF_SAMPLES], ids=["shared", "of samples"])
@pytest.mark.parametrize("architecture", KINDS)
def test_beside_kernels_and_products_a_step_runs_only_these_operations(architecture, live, rule):
    """Tables of every sample's own cost no launch."""
    engine = engine_of(architecture, device="cpu", dtype=torch.bfloat16)
    plan = engine.plan(rule, steps=4)
    assert live in plan.live_sets
    program = Program(ProgramKey.of(plan, 2), plan, engine.models, engine.device, replace(TRITON, **VENDOR))
    with trace_launches("sm_90") as launches, Operations() as ran:
        program.step(live)
    others, kernels = expected(engine.spec, forks=live == (0, 2))
    assert Counter(launch.name for launch in launches) == kernels
    assert Counter({name: count for name, count in ran.counts.items() if name not in PRODUCTS}) == others


def recording(names: list[str]):
    """The reference kernels, which also write down the operations that end a call."""

    def recorded(name):
        def call(*arguments, **options):
            names.append(name)
            return getattr(REFERENCE, name)(*arguments, **options)

        return call

    return replace(REFERENCE, **{name: recorded(name) for name in ("readout_update", "combine_branches", "solver_update")})


ROW = 0.9, -0.1, 0.3, 0.0, 0.5, -0.2, (0.2, -0.4)
# weighs what the three rows before it left
LOOKING_BACK = Solver("looking back", lambda sigmas: [SolverRow(s, i, *ROW) for i, s in enumerate(sigmas[:-1])], earlier=2)


@pytest.mark.parametrize(
    "solver", ["dpm++2m", "euler-maruyama", LOOKING_BACK], ids=lambda solver: getattr(solver, "name", solver)
)
@pytest.mark.parametrize("architecture", KINDS)
def test_reading_with_the_update_equals_reading_and_then_updating(architecture, solver):
    """To the bit, also for a head that predicts more channels than are used."""
    engine = engine_of(architecture, device="cpu")
    plan = engine.plan(SEGMENTED, steps=4, solver=solver)
    ended, program = [], load(engine, plan, batch=2)
    program.kernels = recording(ended)
    for rows in program.rows.values():
        rows.kernels = program.kernels
    for live in plan.live:
        x, noise = program.x.clone(), None
        history, earlier = program.history.clone(), program.earlier if program.earlier is None else program.earlier.clone()
        row = plan.table[int(program.call[0])]
        row = torch.from_numpy(row).float().expand(2, -1)
        if program.key.stochastic:
            noise = REFERENCE.normal_noise(program.seeds, program.call, x[0].numel()).view_as(x)
        REFERENCE.solver_update(x, program.guided_output(live, row[:, 0]), history, noise, row[:, 1:], earlier=earlier)
        ended.clear()
        program.step(live)
        assert ended == ["readout_update"]
        assert torch.equal(program.x, x) and torch.equal(program.history, history)
        assert earlier is None or torch.equal(program.earlier, earlier)


@pytest.mark.parametrize("rule", [SEGMENTED, AutoGuidance(1.0)], ids=["one head", "two networks"])
def test_a_row_weighs_what_the_three_before_it_left(rule):
    """The recurrence written out in fp64 on the outputs of the network, from nothing; the second run forgets the first."""
    engine = engine_of("dit", device="cpu")
    plan = engine.plan(rule, steps=6, solver=LOOKING_BACK)
    for _ in range(2):
        program = load(engine, plan)
        left, x = [], program.x.double()
        for live, row in zip(plan.live, plan.table, strict=True):
            scale = torch.full((len(x),), float(row[0]))
            output = program.guided_output(live, scale).double()
            _, a, b, c, _, e, f, *further = row
            new = a * x + b * output + sum(w * h for w, h in zip((c, *further), left[::-1], strict=False))
            left.append(e * x + f * output)
            program.step(live)
            assert torch.allclose(program.x.double(), new, rtol=0, atol=1e-5 * float(new.abs().max()))
            x = program.x.double()


def test_a_solver_without_earlier_rows_holds_no_more_than_a_state_and_a_history():
    """No memory, no column and no operand is there for what it does not use."""
    engine = engine_of("dit", device="cpu")
    sizes = {}
    for solver in ("dpm++2m", LOOKING_BACK):
        program = load(engine, engine.plan(SEGMENTED, steps=4, solver=solver))
        sizes[solver] = sum(tensor.numel() for tensor in program.state()), program.columns
    state = program.x.numel()
    assert sizes["dpm++2m"] == (2 * state + len(program.x), 7)
    assert sizes[LOOKING_BACK] == (4 * state + len(program.x), 9)


def test_a_row_that_weighs_more_than_its_solver_keeps_is_refused():
    solver = Solver("forgetful", LOOKING_BACK.rows, earlier=1)
    with pytest.raises(ValueError, match="solver 'forgetful' keeps 1 earlier rows, and a row of it weighs 2"):
        engine_of("dit", device="cpu").plan(SEGMENTED, steps=4, solver=solver)


@pytest.mark.parametrize("rule", [CFG(2.0) + EarlyExit(1.0, 2), AutoGuidance(1.0), CFG(3.0, channels=2)], ids=str)
def test_two_heads_two_networks_or_channels_are_combined_after_they_are_read(rule):
    engine = engine_of("dit", device="cpu")
    ended, program = [], load(engine, engine.plan(rule, steps=2))
    program.kernels = recording(ended)
    for rows in program.rows.values():
        rows.kernels = program.kernels
    program.step(program.plan.live[0])
    assert ended == ["combine_branches"] * len(program.rows) + ["solver_update"]


def test_a_head_with_unused_channels_follows_its_weights():
    """A program keeps the weights of the used channels apart; a new run takes them from the network again."""
    engine = engine_of("dit", device="cpu")
    plan = engine.plan(CFG(3.0), steps=2)
    program = load(engine, plan)
    program.step(plan.live[0])
    engine.release(program)
    engine.models["main"].final_layer.linear.weight.data.mul_(2)
    again, fresh = load(engine, plan), engine_of("dit", device="cpu")
    assert again is program
    fresh.models["main"].final_layer.linear.weight.data.mul_(2)
    new = load(fresh, plan)
    for program in (again, new):
        program.step(plan.live[0])
    assert torch.equal(again.x, new.x)
