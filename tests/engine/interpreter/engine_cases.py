"""An engine on Triton kernels draws what an engine on reference functions draws, for every live set."""

import pytest
import torch
import torch.nn.functional as F
from interpreted import SLOW_INTERPRETED, slow_interpreted
from tiny_models import randomize, tiny_sit

from segue import APG, CFG, SGG, AutoGuidance, EarlyExit, Engine, PerturbedLayers, Rescale, SkipLayer, Window
from segue.engine.core import EngineCore
from segue.engine.planning.schedule import linear
from segue.kernels.triton_runtime import TensorDescriptor, interpreting, observe_launches
from segue.models.mmdit import MMDiT, TextCondition
from segue.models.mmdit_spec import MMDiTSpec

DEVICE = "cpu" if interpreting() else "cuda"
# fp32, a few calls of a network of five blocks: each rounds to 6e-8, sums run in another order, guidance gains up to 5
RELATIVE_ERROR = 2e-5
LAST_HALF = Window.fraction(0.5, 1.0)
# the interpreter costs a millisecond per program: 2 x 3 patches, four blocks, two calls
SIZE = {"height": 4, "width": 6, "depth": 4}
RULES = {
    "unguided": None,
    "cfg, then both": CFG(3.0) + SkipLayer(2.0, (1, 3), window=LAST_HALF),
    "segmented": SGG(CFG(3.0), SkipLayer(2.0, (2, 3)), 0.5),
    "perturbed": PerturbedLayers(1.0, layers=(1,), kind="attention_identity") + CFG(2.0, window=LAST_HALF),
    "blurred": PerturbedLayers(1.0, layers=(2, 3), kind="attention_blur"),
    "attention skipped": PerturbedLayers(1.0, layers=(0, 3), kind="attention_skip"),
}
SIT_RULES = RULES | {
    "early exit": CFG(2.0) + EarlyExit(1.0, 2),
    "two networks": AutoGuidance(1.0),
    "three channels": CFG(3.0, channels=2),
}
ENDS = {"gather_kernel", "modulation_kernel", "embed_kernel", "readout_kernel"}  # of a step: before and after the blocks
EVERY_STEP = {"adaln_kernel", "attention_kernel", "linear_kernel", *ENDS}
SEVERAL_READOUTS = ("early exit", "two networks", "three channels")


def guard(monkeypatch):
    """Inside the context the functions that references are made of must not run."""

    def refuse(*_, **__):
        raise AssertionError("a reference function ran in an engine on Triton kernels")

    for name in ("layer_norm", "rms_norm", "scaled_dot_product_attention", "gelu"):
        monkeypatch.setattr(F, name, refuse)


def run(program, monkeypatch=None) -> tuple[torch.Tensor, list]:
    """The sample after every call of the plan, and the launches of the calls."""
    launches = []
    for live in program.plan.live:
        with observe_launches() as seen:
            if monkeypatch is None:
                program.step(live)
            else:
                with monkeypatch.context() as context:
                    guard(context)
                    program.step(live)
        launches.append(seen)
    return program.x.clone(), launches


def check_live_sets(plan, rule: str) -> None:
    """A rule with windows must show each of its two live sets."""
    assert len(set(plan.live)) == (2 if rule in ("cfg, then both", "segmented", "perturbed") else 1)


def check_readout(launches: list, rule: str) -> None:
    """One kernel reads all branches and updates the state, unless heads, networks or channels differ."""
    readouts = [launch for launch in launches if launch.name == "readout_kernel"]
    others = [launch.name for launch in launches if launch.name in ("branches_kernel", "solver_kernel")]
    if rule in SEVERAL_READOUTS:
        assert len(readouts) == 2 and not any(launch.arguments["UPDATE"] for launch in readouts)
        assert others == ["branches_kernel"] * (2 if rule == "two networks" else 1) + ["solver_kernel"]
    else:
        assert launches[-1:] == readouts and readouts[0].arguments["UPDATE"] and not others


def compare(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= RELATIVE_ERROR * theirs.abs().max()


@pytest.fixture(scope="module")
def sit_engines():
    models = tiny_sit(**SIZE), {"weak": tiny_sit(1, **(SIZE | {"depth": 2, "exits": ()}))}
    return [Engine(*models, device=DEVICE, dtype=torch.float32, graphs=False, kernels=k) for k in ("triton", "reference")]


COVERED = ("blurred", "attention skipped", "three channels")  # by the live sets and by the cases of kernels
COVERED_INTERPRETED = ("cfg, then both", "perturbed", "two networks")  # by the live sets alone


def marks_of(rule: str):
    return pytest.mark.slow if rule in COVERED else SLOW_INTERPRETED if rule in COVERED_INTERPRETED else ()


@pytest.mark.parametrize(
    ("rule", "solver"),
    [
        *(pytest.param(rule, "dpm++2m", marks=marks_of(rule)) for rule in SIT_RULES),
        ("segmented", "euler-maruyama"),
    ],
)
def test_sit(sit_engines, rule, solver, monkeypatch):
    batch = 2 if rule == "segmented" else 1
    noise = torch.randn(batch, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    results = []
    for engine in sit_engines:
        plan = engine.plan(SIT_RULES[rule], steps=2, solver=solver)
        check_live_sets(plan, rule)
        program = engine.load(plan, [0, 4][:batch], [2**40, 1][:batch], noise)
        results.append(run(program, monkeypatch if engine is sit_engines[0] else None))
    compare(results[0][0], results[1][0])
    expected = EVERY_STEP | ({"philox_kernel"} if solver == "euler-maruyama" else set())
    expected |= {"branches_kernel", "solver_kernel"} if rule in SEVERAL_READOUTS else set()
    assert all({launch.name for launch in seen} == expected for seen in results[0][1])
    for launches in results[0][1]:
        check_readout(launches, rule)
    assert not any(results[1][1])


def test_two_steps_launch_the_same(sit_engines):
    """What a graph would capture: the same kernels with the same grids, storages of the program and constants."""
    engine = sit_engines[0]
    plan = engine.plan(RULES["segmented"], steps=6)
    program = engine.load(plan, [0], [1], torch.randn(1, 4, 4, 6))

    def signature(launch):
        return launch.name, launch.grid, launch.warps, launch.stages, {name: form(x) for name, x in launch.arguments.items()}

    def form(x):
        """Of an argument what a graph keeps: of tensors, also behind descriptors, how they lie; numbers as they are."""
        if isinstance(x, TensorDescriptor):
            return x.shape, x.strides, x.block_shape, x.base.dtype
        return (x.shape, x.stride(), x.dtype) if torch.is_tensor(x) else x

    for live in plan.live_sets:
        program.step(live)
        seen = []
        for _ in range(2):
            with observe_launches() as launches:
                program.step(live)
            seen.append([signature(launch) for launch in launches])
        assert seen[0] == seen[1]


SD3 = {
    "sd3": {},
    "sd3.5-medium": {"qk_norm": True, "dual_layers": (0, 1)},
    "sd3.5-large": {"qk_norm": True, "heads": 3},
}


def tiny_mmdit(kind: str) -> MMDiT:
    spec = MMDiTSpec(
        **{"name": kind, "channels": 4, "height": 4, "width": 6, "patch": 2, "dim": 48, "depth": 4, "heads": 2}
        | {"text_dim": 24, "pooled_dim": 20, "position_size": 8, "text_tokens": 5}
        | SD3[kind]
    )
    return randomize(MMDiT(spec), 3)


@pytest.mark.parametrize(
    "kind, rules",
    [
        ("sd3.5-medium", ("segmented", "perturbed")),
        slow_interpreted("sd3", ("segmented",)),
        slow_interpreted("sd3.5-large", ("segmented",)),
        pytest.param("sd3.5-medium", tuple(RULES), marks=pytest.mark.slow),
    ],
)
def test_mmdit(kind, rules, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    model = tiny_mmdit(kind)
    engines = [EngineCore(model, device=DEVICE, dtype=torch.float32, graphs=False, kernels=k) for k in ("triton", "reference")]
    noise = torch.randn(1, 4, 4, 6, generator=generator)
    texts = [
        TextCondition(*(torch.randn(1, *shape, generator=generator).to(DEVICE) for shape in ((5, 24), (20,)))) for _ in range(2)
    ]
    for rule in rules:
        results = []
        for engine in engines:
            plan = engine.plan(RULES[rule], schedule=linear(2))
            check_live_sets(plan, rule)
            conditions = {name: texts[name == "uncond"] for name in plan.conditions}
            program = engine.prepare(plan, conditions, [0], noise)
            results.append(run(program, monkeypatch if engine is engines[0] else None))
        compare(results[0][0], results[1][0])
        # heads of 24 numbers, which a norm within the product does not take, are split by a kernel of their own
        apart = {"heads_kernel"} if model.spec.qk_norm and model.spec.head_dim == 24 else set()
        assert all({launch.name for launch in seen} == EVERY_STEP | apart for seen in results[0][1])
        for launches in results[0][1]:
            check_readout(launches, rule)


@pytest.mark.parametrize("rule", [CFG(3.0) + APG(0.0, 2.0, 0.3), SkipLayer(2.0, (2,)).reused(2) + Rescale(0.5)], ids=str)
def test_a_branch_that_is_kept_apart_is_evaluated_alone(sit_engines, rule):
    """As the search for the branch of a non-finite latent does."""
    noise, outputs = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0)), []
    for engine in sit_engines:
        program = engine.load(engine.plan(rule, steps=2), [0, 4], [1, 2], noise)
        outputs.append([program.branch_output(i, torch.ones(2, device=DEVICE)) for i in (0, 1)])
    for ours, theirs in zip(*outputs, strict=True):
        compare(ours, theirs)
