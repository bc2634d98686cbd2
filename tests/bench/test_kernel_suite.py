"""The kernel suite: a kernel that is wrong is not timed, arguments rotate, and figures follow from bytes, FLOPs and time."""

import pytest
import torch

from segue.bench.ceilings import Ceilings, measure_ceilings
from segue.bench.kernel_timing import CACHE_BYTES, argument_sets, kernel_gate, launches
from segue.bench.suites import kernels, run_suite
from segue.bench.timing import Statistic
from segue.kernels.catalogue import SIZES, Case, Factory, cases

CPU = torch.device("cpu")
SIZE = SIZES[0]


def scaled(x, factor):
    return x * factor


def accumulated(x, factor):
    x += factor * x
    return


def case(kernel, reference=scaled, flops: int = 0, traffic: int = 8_000_000) -> Case:
    def arguments(make: Factory):
        return make(63, 33), 1.5

    return Case("scaled", SIZE, kernel, reference, arguments, traffic, flops)


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


def test_what_is_written_in_place_is_judged_and_the_arguments_stay():
    given = arguments()
    before = given[0].clone()
    assert kernel_gate(accumulated, accumulated, given, "case").passed
    assert not kernel_gate(lambda x, f: None, accumulated, given, "case").passed
    assert torch.equal(given[0], before)


def test_arguments_do_not_fit_a_cache_and_each_set_is_used_once_per_run():
    def make(seed):
        return (torch.full((1024, 1024), float(seed)), None, 3)

    sets = argument_sets(make, CPU)
    assert sum(x.numel() * 4 for x, *_ in sets) >= CACHE_BYTES["cpu"]
    used: list[float] = []
    launches(lambda x, *_: used.append(float(x[0, 0])), sets, graph=False)()
    assert used == [float(seed) for seed in range(len(sets))]
    assert len(sets) > 2


def test_a_wrong_kernel_leaves_no_row(make_session, scripted_timer, monkeypatch):
    made = [case(lambda x, f: x * 9.0), case(scaled)]
    monkeypatch.setattr(kernels, "cases", lambda size: [made.pop(0)] if made else [])
    monkeypatch.setattr(kernels, "unavailable", lambda device: None)
    session = make_session(scripted_timer([1e-3]))
    run_suite("kernels", session)
    assert {row.case for row in session.rows} == {"ceilings"}
    assert any("NOT TIMED" in line for line in session.lines)


@pytest.mark.parametrize(("flops", "unit", "value"), [(0, "TB/s", 8e6 / 1e12), (10**9, "TFLOP/s", 1e9 / 1e12)])
def test_figures_follow_from_counts_and_time(make_session, flops, unit, value):
    """One launch of 8 MB takes a second; copies reach 1 MB/s and products 1 MFLOP/s, so the larger share binds."""
    session = make_session(None)
    flat = Statistic(1e6, 1e6, 1e6, 1)
    ceilings = Ceilings(flat, {"bfloat16": flat})
    seconds = {"reference": torch.ones(3).numpy() * 2, "kernel": torch.ones(3).numpy()}
    rows = kernels.operation_rows(session, case(scaled, flops=flops), ceilings, seconds)
    (rate,) = [row for row in rows if row.variant == "kernel" and row.unit == unit]
    assert rate.value == pytest.approx(value)
    assert rate.expected == pytest.approx(1e-6)
    (time,) = [row for row in rows if row.variant == "kernel" and row.metric == "time of a launch"]
    assert time.expected == pytest.approx(max(8.0, flops / 1e6))
    (gain,) = [row for row in rows if row.unit == "x"]
    assert gain.value == 2.0


def test_an_operation_that_cannot_be_captured_does_not_end_the_suite(make_session, scripted_timer, monkeypatch):
    made = [case(scaled), case(scaled)]
    monkeypatch.setattr(kernels, "cases", lambda size: [made.pop(0)] if made else [])

    def refuse(*_arguments, **_options):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(kernels, "launches", refuse)
    session = make_session(scripted_timer([1e-3]))
    run_suite("kernels", session)
    assert any(line.endswith("reference not run, operation not permitted when stream is capturing") for line in session.lines)


def test_without_a_compiler_the_references_are_measured_and_it_is_said(make_session, scripted_timer, monkeypatch):
    monkeypatch.setitem(CACHE_BYTES, "cpu", 1)
    session = make_session(scripted_timer([1e-3]), repetitions=1)
    run_suite("kernels", session)
    assert {row.variant for row in session.rows if row.case != "ceilings"} == {"reference"}
    assert {row.case for row in session.rows} == {"ceilings", *(one.name for one in cases(SIZE))}
    assert sum("Triton kernels are not run" in line for line in session.lines) == 1


def test_ceilings_count_reads_and_writes_and_two_operations_per_product(scripted_timer):
    """A copy of 1 MiB takes 1 s, the products of two 10 x 10 matrices 2 s and 4 s."""
    found = measure_ceilings(CPU, scripted_timer([1.0, 2.0, 4.0]), repetitions=3, copy_bytes=2**20, size=10)
    assert found.copy.median == 2 * 2**20
    assert found.rate(torch.float32) == 2 * 10**3 / 2
    assert found.rate(torch.bfloat16) == 2 * 10**3 / 4
    assert found.seconds(500, 2**22, torch.bfloat16) == 2.0
    assert found.seconds(5000, 2**21, torch.bfloat16) == 10.0
