"""``linears="fp8"``: off by default, told by ``explain``, refused where it cannot work, with an error that is measured."""

import gc

import pytest
import torch
from step_trace import HOST_SYNCHRONISING, trace_step
from sweeps import first_fast
from tiny_models import tiny_sit

from segue import CFG, SGG, AutoGuidance, EarlyExit, Engine, SkipLayer
from segue.engine.fp8_error import fp8_error
from segue.engine.linears import check_linears
from segue.kernels import dispatch
from segue.kernels.contracts import FP8_STEP
from segue.models.fp8_linear import Fp8Linear

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# Both factors of every product are off by at most FP8_STEP; a run averages the velocities of its calls.
FP8_ERROR = 2 * FP8_STEP
RULES = {
    "sgg": SGG(CFG(3.0), SkipLayer(2.0, (1, 3)), 0.5),
    "exit": CFG(2.0) + EarlyExit(1.0, 2),
    "autoguidance": AutoGuidance(1.0),
}


def build(linears: str, **options) -> Engine:
    return Engine(tiny_sit(), {"weak": tiny_sit(1, depth=2, exits=())}, device="cpu", linears=linears, **options)


@pytest.fixture(scope="module")
def engines():
    """(without, with) fp8."""
    return build("native"), build("fp8")


@pytest.fixture
def noise(seed):
    return torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(seed))


def deviation(value, reference) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


# --- off by default, and what it is when on ------------------------------------------------------------------------------


def test_it_is_off_unless_asked_for(engines):
    network = tiny_sit()
    engine = Engine(network, device="cpu")
    assert engine.linears == "native" and engine.models["main"] is network
    assert "fp8" not in engine.explain().replace("_fp8", "").replace("fp8_linear", "")
    assert not any(isinstance(module, Fp8Linear) for module in engines[0].models["main"].modules())


def test_it_is_told_with_its_memory_and_the_layers_left_out(engines):
    network = tiny_sit(2, dim=320, heads=4, mlp_ratio=1.21)
    text = Engine(network, device="cpu", linears="fp8").explain()
    # 5 blocks of QKV and out-projection: 4 x 320 x 320 bytes and 4 x 320 scales of 4 bytes each, of fp32 before
    assert "linears of main: 10 in fp8, an approximation (products by the reference: its numbers, not its speed)" in text
    assert f"take {5 * (4 * 320**2 + 4 * 4 * 320) / 1e6:.1f} MB, beside {5 * 16 * 320**2 / 1e6:.1f} MB where a pipeline" in text
    assert "  5 of 320 -> 387 stay in float32: fp8 products need multiples of 16" in text
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert f"{parameters:.1f} M parameters" in text
    assert "linears of weak: 8 in fp8" in engines[1].explain()


def test_a_bundled_model_is_quantised_as_it_is_loaded():
    exact, fp8 = (Engine.from_pretrained("herbarium", device="cpu", linears=linears) for linears in ("native", "fp8"))
    runs = [engine.sample([0, 5], CFG(2.0), steps=2, seeds=1).latents for engine in (exact, fp8)]
    assert 1e-3 < deviation(runs[1], runs[0]) < FP8_ERROR


@pytest.mark.parametrize("rule", first_fast(RULES))
def test_a_step_can_be_captured(engines, noise, rule):
    """The same operations on the same storages, no host synchronisation, nothing that outlives the step."""
    engine = engines[1]
    plan = engine.plan(RULES[rule], steps=8)
    program = engine.load(plan, [0, 4], [1, 2], noise)

    def tensors() -> set[int]:
        gc.collect()
        return {id(value) for value in gc.get_objects() if issubclass(type(value), torch.Tensor)}

    for live in plan.live_sets:
        program.step(live)
        first, second = trace_step(program, live), trace_step(program, live)
        assert first.operations == second.operations
        assert not any(word in name for name, _ in first.operations for word in HOST_SYNCHRONISING)
        del first, second
        before = tensors()
        program.step(live)
        assert tensors() <= before


def test_a_sample_does_not_depend_on_its_batch(engines):
    """Rows are quantised one by one; sums in another order may move a value by one step of e4m3."""
    labels, seeds = [0, 4, 2, 1, 5], [5, 6, 7, 8, 9]
    together = engines[1].sample(labels, CFG(3.0), steps=3, seeds=seeds).latents
    apart = [
        engines[1].sample([label], CFG(3.0), steps=3, seeds=[seed]).latents[0]
        for label, seed in zip(labels, seeds, strict=True)
    ]
    found = sorted(deviation(one, whole) for one, whole in zip(apart, together, strict=True))
    assert found[2] < 1e-5 and found[-1] < 2 * FP8_ERROR, found


# --- refusals ------------------------------------------------------------------------------------------------------------


def pretend(monkeypatch, capability: tuple[int, int]):
    monkeypatch.setattr(dispatch, "architecture", lambda device: "sm_{}{}".format(*capability))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "message"),
    [
        (CUDA, (8, 0), torch.bfloat16, r"compute capability 8\.9, and this device is sm_80; kernels='fp8_linear=reference'"),
        (CUDA, (9, 0), torch.float16, "give bfloat16, and this network computes in float16; kernels='fp8_linear=reference'"),
        (torch.device("mps"), (9, 0), torch.float32, "run on NVIDIA devices, and this is mps$"),
    ],
)
def test_where_it_cannot_work_it_is_refused(monkeypatch, device, capability, dtype, message):
    pretend(monkeypatch, capability)
    with pytest.raises(ValueError, match=f"linears='fp8' cannot work: .*{message}"):
        check_linears("fp8", device, dtype)
    assert check_linears("native", device, dtype) == "native"


def test_the_reference_may_be_asked_for_where_the_product_is_missing(monkeypatch):
    pretend(monkeypatch, (8, 0))
    for kernels in ("reference", "auto,fp8_linear=reference"):
        assert check_linears("fp8", CUDA, torch.bfloat16, kernels) == "fp8"
    pretend(monkeypatch, (8, 9))
    assert check_linears("fp8", CUDA, torch.bfloat16) == "fp8"


def test_other_refusals(engines):
    with pytest.raises(ValueError, match="unknown linears 'int8'; known: native, fp8"):
        build("int8")
    with pytest.raises(ValueError, match="unknown linears 'int8'"):
        Engine.from_pretrained("herbarium", linears="int8")
    with pytest.raises(ValueError, match=r"no block linear that fp8 can take: .* multiples of 16"):
        Engine(tiny_sit(dim=24, heads=3), device="cpu", linears="fp8")
    with pytest.raises(ValueError, match="has fp8 linears, and its own weights are gone"):
        Engine(engines[1].models["main"], device="cpu")


# --- its error -----------------------------------------------------------------------------------------------------------


def test_the_error_is_that_of_the_networks_and_of_the_runs(engines, noise):
    exact, fp8 = engines
    plan = exact.plan(RULES["sgg"], steps=6)
    found = fp8_error(exact, fp8, lambda engine: engine.load(plan, [0, 4], [1, 2], noise))
    runs = [engine.sample([0, 4], RULES["sgg"], steps=6, seeds=[1, 2], noise=noise).latents for engine in engines]
    assert found.run == pytest.approx(deviation(runs[1], runs[0]), rel=1e-6)
    states = [noise]  # what the exact network sees: the state before each call
    exact.sample([0, 4], RULES["sgg"], steps=6, seeds=[1, 2], noise=noise, callback=lambda info: states.append(info.x.clone()))
    evaluations = []
    with torch.no_grad():
        for state, sigma in zip(states, plan.sigmas, strict=False):
            time = torch.full((2,), float(sigma))
            value, truth = (engine.models["main"](state, time, torch.tensor([0, 4])) for engine in (fp8, exact))
            evaluations.append(deviation(value, truth))
    # one value in thousands may round the other way where sums are taken in another order
    assert found.evaluation == pytest.approx(max(evaluations), rel=0.1)
    assert 0 < found.run < FP8_ERROR and 0 < found.evaluation < FP8_ERROR


def test_only_fp8_against_native_is_compared(engines):
    exact, fp8 = engines
    with pytest.raises(ValueError, match="fp8 is compared with native linears, got native and fp8"):
        fp8_error(fp8, exact, lambda engine: None)
