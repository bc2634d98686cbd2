"""The census against steps that really run, against the plan's own count, and against what it says of itself."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from graph_nodes import captured_nodes
from live_sets import ARCHITECTURES, engine_of, every_branch, live_sets, networks
from torch.utils._python_dispatch import TorchDispatchMode

from segue.bench.cards import CARDS, this_chip
from segue.bench.cases import BenchModel, Workload
from segue.bench.census import CUDA, META, PLAIN, meta_network, step_kernels, take_census
from segue.engine.core import network_shapes
from segue.engine.running.program import Program
from segue.engine.running.program_key import ProgramKey
from segue.kernels import dispatch
from segue.kernels.dispatch import Selection, Shapes, select_kernels
from segue.kernels.triton_runtime import Chip, trace_launches
from segue.models.fp8_network import Fp8Layers

H100 = CARDS["h100"]


def chosen(networks_, chip: Chip = H100.chip, dtype=torch.bfloat16, **options) -> Selection:
    with trace_launches(chip):
        return select_kernels(CUDA, dtype, network_shapes(networks_), **options)


class Operations(TorchDispatchMode):
    """Names of the operations that run; views and allocations start nothing."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__.rstrip("_")
        if not function.is_view and name not in ("empty", "new_empty", "_unsafe_view", "scalar_tensor"):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_census_is_what_a_step_on_the_cpu_does(architecture):
    """Every set of up to two branches of a rule that names all: a real step, and the same on meta tensors."""
    engine = engine_of(architecture, device="cpu", dtype=torch.bfloat16)
    plan = engine.plan(every_branch(engine.spec), steps=3)
    selection, key = chosen(engine.models), ProgramKey.of(plan, 2)
    empty = {name: meta_network(spec, torch.bfloat16) for name, spec in engine.specs.items()}
    real = Program(key, plan, engine.models, engine.device, selection.kernels)
    unreal = Program(key, plan, empty, META, selection.kernels)
    for live in live_sets(plan, most=1):
        counted = step_kernels(unreal, live, H100.chip)
        assert Counter(counted) == Counter(step_kernels(real, live, H100.chip))
        with trace_launches(H100.chip) as launches, Operations() as ran:
            real.step(live)
        names = Counter(kernel.name for kernel in counted)
        assert Counter(launch.name for launch in launches) == Counter({n: c for n, c in names.items() if "kernel" in n})
        for name in ("addmm", "bmm", "mm", "gelu", "mul", "add", "cat", "mean"):
            assert names[name] == ran.counts[name], (live, name)


TRUE_SIZES = [("sd3.5-medium", "sgg", 1, "native"), ("sd3.5-medium", "sgg", 1, "fp8"), ("dit-xl/2", "sgg-exit", 2, "native")]
TRUE_SIZES += [("sit-s/2", "cfg:scale=3+pag:weight=1,layers=3", 3, "native")]
TRUE_SIZES += [("sd3-medium", "nag:scale=5,window=fraction:0,0.5", 1, "native")]  # attention over parts, with its log-sum-exp


@pytest.mark.parametrize(("name", "rule", "batch", "linears"), TRUE_SIZES)
def test_flops_are_those_of_the_plan(name, rule, batch, linears):
    """To the last one; a perturbed attention, which computes no scores, is counted whole by the plan."""
    model = BenchModel.parse(name)
    plan, census = model.plan(rule, 28), take_census(model, H100, rule, batch, linears=linears)
    assert [step.branches for step in census.steps] == [
        tuple(str(plan.branches[i]) for i in live) for live in dict.fromkeys((PLAIN, *plan.live_sets))
    ]
    for live, step in zip(dict.fromkeys((PLAIN, *plan.live_sets)), census.steps, strict=True):
        tokens, spec = model.spec.tokens(model.spec.height, model.spec.width), model.spec
        unscored = 4 * tokens**2 * spec.dim * sum("attention" in str(plan.branches[i]) for i in live)
        assert step.total().flops == batch * (plan.call_cost(live)[2] - unscored)
        assert step.calls == plan.live.count(live)
    assert census.seconds == pytest.approx(sum(step.calls * step.total().seconds for step in census.steps))


def test_kinds_and_operations_add_up():
    step = take_census(BenchModel.parse("sit-s/2@64"), H100).steps[-1]
    for fields in (("kind",), ("name", "sizes"), ("kind", "name", "sizes", "dtype")):
        totals = step.groups(*fields)
        for name in ("kernels", "flops", "bytes"):
            assert sum(getattr(total, name) for total in totals.values()) == getattr(step.total(), name)
        seconds = [total.seconds for total in totals.values()]
        assert seconds == sorted(seconds, reverse=True)
        assert sum(seconds) == pytest.approx(step.total().seconds)
    assert step.total().kernels == sum(step.kernels.values()) - step.copies
    assert step.copies == 1  # the fork


def test_copies_are_no_kernels_but_take_time():
    step = take_census(BenchModel.parse("sit-s/2"), H100, "slg").steps[-1]
    total = step.groups("kind")["copy",]
    assert total.kernels == 0 and total.bytes > 0 and total.seconds > 0


def test_the_kernels_are_those_that_the_card_would_choose(monkeypatch):
    """As on a machine that has the card, as far as the choice can see."""
    selection = chosen({"main": SimpleNamespace(spec=BenchModel.parse("sit-s/2").spec)})
    monkeypatch.setattr(dispatch, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: H100.chip.cudnn)
    here = select_kernels(torch.device("cuda", 0), torch.bfloat16, Shapes(64, 384, 16))
    assert selection.explain() == here.explain()


def test_another_card_has_another_choice():
    spec = {"main": SimpleNamespace(spec=BenchModel.parse("sit-s/2").spec)}
    old = chosen(spec, Chip("sm_80", 108, 91501))
    assert "cuDNN is fastest from sm_90 on" in old.chosen["attention"][1]
    assert old.chosen["quantize_rows"][0] == "reference"  # no fp8 there
    assert "91500 is older" in chosen(spec, replace(H100.chip, cudnn=91500)).chosen["attention"][1]


def test_a_request_is_followed():
    model = BenchModel.parse("sit-s/2@64")
    apart, joined = (
        take_census(model, H100, "none", kernels=text).steps[0] for text in ("linear_gelu=reference", "linear_gelu=cublaslt")
    )
    assert apart.total().kernels - joined.total().kernels == model.spec.depth
    assert {kernel.name for kernel in apart.kernels} - {kernel.name for kernel in joined.kernels} == {"gelu"}
    own = take_census(model, H100, "none", kernels="triton").steps[0]
    assert {kernel.name for kernel in own.kernels if kernel.kind == "attention"} == {"attention_kernel"}


def test_linears_in_fp8_are_products_of_fp8_numbers():
    """One for each of the block linears, and no other product in the step; in half precision there is none."""
    model = BenchModel.parse("sd3.5-medium@128:64")
    (step,) = take_census(model, H100, "none", linears="fp8").steps
    groups, layers = step.groups("kind", "dtype"), Fp8Layers.of(meta_network(model.spec, torch.bfloat16, "fp8"))
    products = {dtype: total.kernels for (kind, dtype), total in groups.items() if kind == "product"}
    assert products == {"float8_e4m3fn": layers.quantized}
    with pytest.raises(ValueError, match=r"linears='fp8' cannot work: .* computes in float16"):
        take_census(model, H100, "none", dtype=torch.float16, linears="fp8")


def test_precision_decides_which_attention_serves():
    def attention(dtype, cudnn):
        card = replace(H100, chip=replace(H100.chip, cudnn=cudnn))
        step = take_census(BenchModel.parse("sit-s/2@64"), card, "none", dtype=dtype).steps[0]
        return {kernel.name for kernel in step.kernels if kernel.kind == "attention"}

    assert attention(torch.bfloat16, 91501) == {"cudnn attention"}
    assert "flash attention" in attention(torch.float16, 0)
    assert attention(torch.float32, 91501) == {"efficient attention"}


def test_bad_input_is_refused():
    model = BenchModel.parse("sit-s/2@64")
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        take_census(model, H100, batch=0)
    with pytest.raises(ValueError, match="layer 40 does not exist"):
        take_census(model, H100, "slg:weight=1,layers=40")
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        take_census(model, H100, kernels="fast")


@pytest.mark.parametrize("architecture", ["sit", "sd3.5-medium"])
def test_networks_without_weights_have_the_parameters_of_real_ones(architecture):
    for real in networks(architecture).values():
        unreal = meta_network(real.spec, torch.float32)
        assert {n: p.shape for n, p in unreal.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sd3.5-medium:1024", "dit-xl/2:256"])
def test_the_census_is_what_a_graph_on_this_device_holds(name):
    """Every node but those that the vendor's libraries add: a second kernel for sums that they split, a change of layout."""
    device = torch.device("cuda", torch.cuda.current_device())
    model, card = BenchModel.parse(name), replace(H100, chip=this_chip(device))
    workload, census = Workload.make(model, 1, device, torch.bfloat16), take_census(model, card)
    plan = workload.plan(model.rule("sgg"), 28)
    program = workload.engine.prepare(plan, workload.conditions(plan), range(1), workload.state(plan))
    for live, step in zip(dict.fromkeys((PLAIN, *plan.live_sets)), census.steps, strict=True):
        assert Counter(step_kernels(program, live, card.chip)) == step.kernels
        kinds = {kind: total.kernels for (kind,), total in step.groups("kind").items()}
        more = captured_nodes(lambda live=live: program.step(live)) - step.total().kernels - step.copies
        assert 0 <= more <= (kinds["product"] if card.chip.cudnn else 0), (step.branches, more)
