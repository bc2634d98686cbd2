"""The kernel suite: a kernel that is wrong is not timed, arguments rotate, and figures follow from bytes, FLOPs and time."""

import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segue.bench import attention_backends, ceilings
from segue.bench.ceilings import Ceilings, measure_ceilings
from segue.bench.kernel_timing import CACHE_BYTES, argument_sets, kernel_gate
from segue.bench.suites import kernels, run_suite
from segue.bench.timing import Statistic
from segue.kernels import attention
from segue.kernels.catalogue import SIZES, Case, Factory, Size, cases
from segue.kernels.trial import one_pass

CPU = torch.device("cpu")
SIZE = SIZES[0]
CEILINGS = (
    Statistic(1e6, 1e6, 1e6, 1),
    {name: Statistic(rate, rate, rate, 1) for name, rate in (("bfloat16", 1e6), ("float32", 2.5e5))},
)


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
    monkeypatch.setattr(ceilings, "CPU_COPY_BYTES", 2**12)
    monkeypatch.setattr(ceilings, "CPU_PRODUCT", 33)


def scaled(x, factor):
    return x * factor


def accumulated(x, factor):
    x += factor * x
    return


def case(kernel, reference=scaled, flops: int = 0, traffic: int = 8_000_000, **more) -> Case:
    def arguments(make: Factory):
        return make(63, 33), 1.5

    return Case("scaled", SIZE, kernel, reference, arguments, traffic, flops, **more)


def arguments(dtype=torch.bfloat16):
    return case(scaled).arguments(Factory(CPU, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_kernel_that_computes_the_same_passes(dtype):
    assert kernel_gate(lambda x, f: (x.float() * f).to(x.dtype), scaled, arguments(dtype), "case").passed


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, f: x * (f + 0.1),
        lambda x, f: torch.where(torch.arange(x.numel()).view(x.shape) == 7, torch.nan, x * f),
        lambda x, f: torch.cat([x[:-1] * f, x[-1:]]),
    ],
    ids=["factor", "one NaN", "last row unwritten"],
)
def test_a_kernel_that_is_wrong_does_not_pass(wrong):
    assert not kernel_gate(wrong, scaled, arguments(), "case").passed


def cut(x, factor):
    """Rounded toward zero, to half of the bits of fp32."""
    return ((x.float() * factor).view(torch.int32) & -65536).view(torch.float32).bfloat16()


def test_a_kernel_that_rounds_to_one_side_does_not_pass():
    gate = kernel_gate(cut, scaled, arguments(), "case")
    assert not gate.passed and gate.what == "bias of case" and gate.error > 0.5


def test_sums_that_are_promised_to_be_approximate_are_held_to_their_promise():
    """fp8 products summed with fewer bits: one percent is within the promise of that backend, and of no other."""

    def short(x, factor):
        return x * (factor * 1.01)

    def passes(backend: str, kernel=short) -> bool:
        return kernel_gate(kernel, scaled, arguments(torch.float32), "case", "fp8_linear", backend).passed

    assert passes("scaled_mm_fast") and not passes("scaled_mm")
    assert not passes("scaled_mm_fast", lambda x, factor: x * (factor * 1.03))


def test_what_is_written_in_place_is_judged_and_the_arguments_stay():
    given = arguments()
    before = given[0].clone()
    assert kernel_gate(accumulated, accumulated, given, "case").passed
    assert not kernel_gate(lambda x, f: None, accumulated, given, "case").passed
    assert torch.equal(given[0], before)


@pytest.mark.parametrize("repeats", [1, 7], ids=["arguments alone", "results six times larger"])
def test_arguments_and_results_do_not_fit_a_cache_and_each_set_is_used_once_per_run(repeats):
    def make(seed):
        return (torch.full((512, 512), float(seed)), None, 3)

    def expanded(x, *_):
        return x if repeats == 1 else x.repeat(repeats - 1, 1)  # returned arguments count once

    sets = argument_sets(make, expanded, CPU)
    least = -(-CACHE_BYTES["cpu"] // (repeats * 2**20))
    assert len(sets) == least > 2
    used: list[float] = []
    one_pass(lambda x, *_: used.append(float(x[0, 0])), sets)()
    assert used == [float(seed) for seed in range(len(sets))]


def test_the_results_of_a_pass_do_not_share_memory():
    """A result that is dropped leaves its block, still in the cache, to the next launch."""
    results: list[weakref.ref] = []
    alive = []

    def doubled(x):
        alive.append(sum(result() is not None for result in results))
        y = 2 * x
        results.append(weakref.ref(y))
        return y

    one_pass(doubled, [(torch.ones(33, 63),) for _ in range(5)])()
    assert alive == [0, 1, 2, 3, 4]
    assert all(result() is None for result in results)


def test_a_wrong_kernel_leaves_no_row(make_session, scripted_timer, monkeypatch):
    made = [case(lambda x, f: x * 9.0), case(scaled)]
    monkeypatch.setattr(kernels, "cases", lambda size, dtype: [made.pop(0)] if made else [])
    monkeypatch.setattr(kernels, "unavailable", lambda device: None)
    session = make_session(scripted_timer([1e-3]))
    run_suite("kernels", session)
    assert {row.case for row in session.rows} == {"ceilings"}
    assert any("NOT TIMED" in line for line in session.lines)


@pytest.mark.parametrize(
    ("flops", "more", "unit", "value", "floor"),
    [
        (0, {}, "TB/s", 8e6, 8.0),
        (10**9, {"has_product": True}, "TFLOP/s", 1e9, 1000.0),
        (10**9, {"has_product": True, "dtype": torch.float32}, "TFLOP/s", 1e9, 4000.0),
        (10**9, {}, "TB/s", 8e6, 8.0),
    ],
    ids=["copy", "product", "product in fp32", "elementwise arithmetic"],
)
def test_figures_follow_from_counts_and_time(make_session, flops, more, unit, value, floor):
    """One launch of 8 MB takes a second; copies reach 1 MB/s, products 1 MFLOP/s and a quarter of it in fp32."""
    session = make_session(None)
    measured = Ceilings(*CEILINGS)
    seconds = {"reference": torch.ones(3).numpy() * 2, "kernel": torch.ones(3).numpy()}
    rows = kernels.operation_rows(session, case(scaled, flops=flops, **more), measured, seconds)
    assert {row.dtype for row in rows} == {"float32" if "dtype" in more else "bfloat16"}
    (rate,) = [row for row in rows if row.variant == "kernel" and row.unit == unit]
    assert rate.value == pytest.approx(value / 1e12)
    assert rate.expected == pytest.approx(value / floor / 1e12)
    (time,) = [row for row in rows if row.variant == "kernel" and row.metric == "time of a launch"]
    assert time.expected == pytest.approx(floor)
    (gain,) = [row for row in rows if row.unit == "x"]
    assert gain.value == 2.0


def test_a_share_above_the_ceiling_is_said_and_noted(make_session):
    """8 MB at 1 MB/s take 8 s: a kernel in 7.7 s is within the spread, a reference in 4 s read from a cache."""
    session = make_session(None)
    seconds = {"reference": torch.ones(3).numpy() * 4, "kernel": torch.ones(3).numpy() * 7.7}
    rows = kernels.operation_rows(session, case(scaled), Ceilings(*CEILINGS), seconds)
    notes = {row.variant: row.note for row in rows if row.unit == "TB/s"}
    assert notes["reference"].startswith("at 200% of the measured ceiling: a cache held the operands")
    assert notes["kernel"] == ""
    assert [line for line in session.lines if "a cache held the operands" in line] == session.lines
    assert len(session.lines) == 1


def test_without_a_gpu_everything_is_in_fp32_and_counted_so(make_session, scripted_timer, monkeypatch):
    """Activations of twice the size move up to twice the bytes; attention in fp32 is no case of its own then."""
    monkeypatch.setitem(CACHE_BYTES, "cpu", 1)
    session = make_session(scripted_timer([1e-3]), repetitions=1)
    run_suite("kernels", session)
    assert {row.dtype for row in session.rows if row.case != "ceilings"} == {"float32"}
    single, half = ({one.name: one for one in cases(SIZE, dtype)} for dtype in (torch.float32, torch.bfloat16))
    vendor = {name for name, one in half.items() if one.vendor}  # products that come in bf16 alone
    assert set(half) - set(single) == {f"attention in fp32, {SIZE.name}", *vendor}
    for name, operation in single.items():
        state_only = half[name].dtype == torch.float32
        assert operation.bytes_moved <= (1 if state_only else 2) * half[name].bytes_moved, name
        assert (operation.bytes_moved == half[name].bytes_moved) == state_only, name
    moved = single[f"attention, {SIZE.name}"].bytes_moved
    assert moved == half[f"attention in fp32, {SIZE.name}"].bytes_moved == 2 * half[f"attention, {SIZE.name}"].bytes_moved


def test_products_are_where_the_flops_that_pytorch_counts_are():
    for one in (*cases(SIZE), *(case for case in cases(SIZES[4]) if case.operation == "grouped_linear")):
        arguments = one.arguments(Factory(torch.device("meta"), one.dtype))
        with FlopCounterMode(display=False) as counter:
            one.reference(*arguments)
        assert (counter.get_total_flops() > 0) == one.has_product, one.name


def test_an_operation_that_cannot_be_captured_does_not_end_the_suite(make_session, scripted_timer, monkeypatch):
    made = [case(scaled), case(scaled)]
    monkeypatch.setattr(kernels, "cases", lambda size, dtype: [made.pop(0)] if made else [])

    def refuse(*_arguments, **_options):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(kernels, "one_pass", refuse)
    session = make_session(scripted_timer([1e-3]))
    run_suite("kernels", session)
    assert any(
        line.endswith("reference not run, RuntimeError: operation not permitted when stream is capturing")
        for line in session.lines
    )


def test_without_a_compiler_the_references_are_measured_and_it_is_said(make_session, scripted_timer, monkeypatch):
    monkeypatch.setitem(CACHE_BYTES, "cpu", 1)
    session = make_session(scripted_timer([1e-3]), repetitions=1)
    run_suite("kernels", session)
    assert {row.variant for row in session.rows if row.case != "ceilings"} == {"reference"}
    assert {row.case for row in session.rows} == {"ceilings", *(one.name for one in cases(SIZE, torch.float32))}
    assert sum("Triton kernels are not run" in line for line in session.lines) == 1


def test_ceilings_count_reads_and_writes_and_two_operations_per_product(scripted_timer):
    """A copy of 1 MiB takes 1 s, the products of two 10 x 10 matrices 2 s and 4 s."""
    found = measure_ceilings(CPU, scripted_timer([1.0, 2.0, 4.0]), repetitions=1, copy_bytes=2**20, size=10)
    assert found.copy.median == 2 * 2**20
    assert found.rate(torch.float32) == 2 * 10**3 / 2
    assert found.rate(torch.bfloat16) == 2 * 10**3 / 4
    assert found.seconds(500, 2**22, torch.bfloat16) == 2.0
    assert found.seconds(5000, 2**21, torch.bfloat16) == 10.0


def test_ceilings_are_measured_for_further_dtypes_only_where_they_are_missing(scripted_timer):
    found = measure_ceilings(CPU, scripted_timer([1.0, 2.0]), (torch.bfloat16,), 1, copy_bytes=2**20, size=10)
    again = found.including(CPU, scripted_timer([0.5]), [torch.bfloat16, torch.float32, torch.float32])
    assert again.copy == found.copy
    assert again.rate(torch.bfloat16) == found.rate(torch.bfloat16)
    assert again.rate(torch.float32) == 2 * ceilings.CPU_PRODUCT**3 / 0.5
    assert again.including(CPU, None, [torch.float32]) is again


def test_an_operation_that_does_not_fit_does_not_end_the_suite(make_session, scripted_timer, monkeypatch):
    def too_large(x, factor):
        raise torch.OutOfMemoryError("out of memory")

    made = [case(scaled, too_large), replace(case(scaled), operation="other")]
    monkeypatch.setattr(kernels, "cases", lambda size, dtype: made)
    session = make_session(scripted_timer([1e-3]))
    run_suite("kernels", session)
    assert {row.case for row in session.rows} == {"ceilings", f"other, {SIZE.name}"}
    assert sum("scaled" in line and "out of memory" in line for line in session.lines) == 1


def test_sizes_are_chosen_by_how_their_names_begin(make_session):
    def chosen(*models, **settings):
        return [size.name for size in kernels.chosen_sizes(make_session(None, models=models, **settings))]

    assert chosen("sd3.5-medium 1024", "DiT-XL/2 256")[0].startswith("SD3.5-medium 1024")
    assert set(chosen("dit-xl/2")) == {size.name for size in SIZES if size.name.startswith("DiT-XL/2")}
    assert chosen() == [SIZES[0].name]  # without a GPU
    with pytest.raises(ValueError, match="no size of the kernels begins with 'nope'; known: herbarium, "):
        chosen("nope")


def test_every_attention_of_pytorch_is_a_variant_with_a_gate_of_its_own(make_session, scripted_timer, monkeypatch):
    """Right, wrong and not there: the first is timed beside the kernel, the others are said; only a wrong one is a failure."""

    def absent(q, k, v):
        raise ModuleNotFoundError("No module named 'flash_attn'")

    def wrong(q, k, v):
        return attention.attention(q, k, v) * 1.01

    plain = attention_backends._with_backend
    right = partial(plain, torch.nn.attention.SDPBackend.MATH)
    monkeypatch.setattr(kernels, "attention_backends", lambda _device: {"right": right, "wrong": wrong, "absent": absent})
    monkeypatch.setattr(kernels, "unavailable", lambda device: None)
    monkeypatch.setitem(CACHE_BYTES, "cpu", 1)
    size = Size("small", 1, 63, 10, 128, 2, 2, 4)
    made = [replace(one, kernel=one.reference) for one in cases(size, torch.float32) if one.operation == "attention"]
    monkeypatch.setattr(kernels, "cases", lambda size, dtype: made)
    session = make_session(scripted_timer([1e-3]), repetitions=1)
    run_suite("kernels", session)
    timed = {row.variant for row in session.rows if row.metric == "time of a launch"}
    assert timed == {"reference", "kernel", "right"}
    gains = {row.variant for row in session.rows if row.metric == "speed-up over the reference"}
    assert gains == {"kernel", "right"}
    assert session.failures == 1
    assert any("absent not run, ModuleNotFoundError: No module named 'flash_attn'" in line for line in session.lines)
    assert any("wrong: NOT TIMED" in line for line in session.lines)


def test_an_attention_kernel_that_does_not_compile_leaves_those_of_pytorch(make_session, scripted_timer, monkeypatch):
    def fails(q, k, v):
        raise KeyError("out of resource: shared memory")

    size = Size("small", 1, 63, 10, 128, 2, 2, 4)
    made = [replace(one, kernel=fails) for one in cases(size, torch.float32) if one.operation == "attention"]
    monkeypatch.setattr(kernels, "cases", lambda size, dtype: made)
    monkeypatch.setattr(kernels, "attention_backends", lambda _device: {"other": attention.attention})
    monkeypatch.setattr(kernels, "unavailable", lambda device: None)
    monkeypatch.setitem(CACHE_BYTES, "cpu", 1)
    session = make_session(scripted_timer([1e-3]), repetitions=1)
    run_suite("kernels", session)
    assert {row.variant for row in session.rows if row.metric == "time of a launch"} == {"reference", "other"}
    assert session.failures == 1


def test_a_flash_implementation_is_active_only_while_it_is_called(monkeypatch):
    """Activated ones replace flash in the whole process: afterwards PyTorch's own must be back, also after an error."""
    module, events = attention_backends.attention, []
    monkeypatch.setattr(module, "list_flash_attention_impls", lambda: ["FA3", "other"], raising=False)
    monkeypatch.setattr(module, "activate_flash_attention_impl", lambda name: events.append(f"on {name}"), raising=False)
    monkeypatch.setattr(module, "restore_flash_attention_impl", lambda: events.append("off"), raising=False)

    def attend(backend, q, k, v):
        events.append(backend)
        raise RuntimeError("not this head dimension")

    monkeypatch.setattr(attention_backends, "_with_backend", attend)
    found = attention_backends.attention_backends(torch.device("cuda"))
    assert set(found) == {"cuDNN", "flash", "efficient", "FA3"}
    with pytest.raises(RuntimeError, match="not this head dimension"):
        found["FA3"](None, None, None)
    assert events == ["on FA3", torch.nn.attention.SDPBackend.FLASH_ATTENTION, "off"]
    assert attention_backends.attention_backends(CPU) == {}


def test_the_products_of_emulated_precision_are_small():
    """At 2 FLOP per multiply-add the counted work follows the size that each dtype is measured at."""
    sides = {
        name: round((work.amount / 2) ** (1 / 3))
        for name, work in ceilings._products(CPU, (torch.float32, torch.bfloat16)).items()
    }
    assert sides == {"float32": ceilings.CPU_PRODUCT, "bfloat16": ceilings.EMULATED_PRODUCT}
