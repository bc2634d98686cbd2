"""Suite ``kernels``: every fused operation beside its PyTorch reference, in TB/s or TFLOP/s against the measured ceilings."""

from functools import partial

import torch

from segue.kernels.catalogue import SIZES, Case, Factory, cases
from segue.kernels.triton_runtime import unavailable

from ..ceilings import Ceilings, dtype_name
from ..kernel_timing import argument_sets, kernel_gate, launches
from ..rows import Row
from ..session import Session
from ..timing import Statistic, interleave, paired_ratio

NAME = "kernels"
CEILINGS_CASE = "ceilings"
CPU_SIZES = 1  # the smallest of the catalogue; the others take minutes without a GPU
PLAUSIBLE = 1.05  # of a ceiling; more is not explained by the spread of the two measurements


def run(session: Session) -> None:
    """The ceilings of this machine first, then operation by operation: in bf16 on CUDA, in fp32 on the CPU."""
    settings = session.settings
    device = settings.torch_device
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    sizes = SIZES if cuda and not settings.quick else SIZES[:CPU_SIZES]
    chosen = [case for size in sizes for case in cases(size, dtype)]
    ceilings = session.ceilings().including(device, session.timer, [case.dtype for case in chosen])
    if session.wants(NAME, CEILINGS_CASE, dtype_name(dtype)):
        session.commit(ceiling_rows(session, ceilings, dtype))
    reason = unavailable(device)
    if reason:
        session.echo(f"{NAME}: the Triton kernels are not run, {reason}; their references are")
    variants = ("reference",) if reason else ("reference", "kernel")
    for case in chosen:
        if session.wants(NAME, case.name, dtype_name(case.dtype), variants) and _capable(session, case, device):
            session.attempt(NAME, case.name, partial(measure, session, case, ceilings, compiled=reason is None))


def ceiling_rows(session: Session, ceilings: Ceilings, dtype: torch.dtype) -> list[Row]:
    """The ceilings as rows of their own: every later figure is read against them."""
    row = partial(session.row, NAME, CEILINGS_CASE)
    copy = ceilings.copy.map(lambda value: value / 1e12)
    rows = [row("large copy", "bandwidth", "TB/s", copy, dtype=dtype_name(dtype))]
    for name, rate in ceilings.products.items():
        rows.append(row(f"large product, {name}", "rate", "TFLOP/s", rate.map(lambda value: value / 1e12), dtype=name))
    return rows


def _capable(session: Session, case: Case, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < case.minimum_capability:
        session.echo(f"{NAME} {case.name}: not run, it needs compute capability {case.minimum_capability / 10}")
        return False
    return True


def measure(session: Session, case: Case, ceilings: Ceilings, compiled: bool) -> None:
    """One operation: gate, then kernel and reference interleaved, replayed from graphs on CUDA."""
    settings = session.settings
    device = settings.torch_device

    def make(seed: int) -> tuple:
        return case.arguments(Factory(device, case.dtype, seed))

    functions = {"reference": case.reference}
    if compiled:
        if not session.passes(NAME, case.name, kernel_gate(case.kernel, case.reference, make(0), case.name, case.operation)):
            return
        functions["kernel"] = case.kernel
    sets = argument_sets(make, case.reference, device)
    draws = {}
    for name, function in functions.items():
        try:
            draws[name] = launches(function, sets, graph=device.type == "cuda")
        except RuntimeError as error:  # an operation that cannot be captured must not end the suite
            session.echo(f"{NAME} {case.name}: {name} not run, {' '.join(str(error).split())[:160]}")
    if draws:
        seconds = interleave(draws, session.timer, settings.repetitions, settings.case_limit_s)
        seconds = {name: values / len(sets) for name, values in seconds.items()}
        session.commit(operation_rows(session, case, ceilings, seconds))


def operation_rows(session: Session, case: Case, ceilings: Ceilings, seconds: dict) -> list[Row]:
    """Time, and the rate that binds: traffic or, where a matrix product is inside, arithmetic if it takes longer."""
    by_traffic = case.bytes_moved / ceilings.copy.median
    by_arithmetic = case.flops / ceilings.rate(case.dtype) if case.has_product else 0.0
    amount, metric, unit, ceiling = (
        (case.bytes_moved, "bandwidth", "TB/s", ceilings.copy.median)
        if by_traffic >= by_arithmetic
        else (case.flops, "rate", "TFLOP/s", ceilings.rate(case.dtype))
    )
    floor, intensity = max(by_traffic, by_arithmetic), case.flops / case.bytes_moved
    dtype = dtype_name(case.dtype)
    counted = Statistic(intensity, intensity, intensity, 1)
    rows = [session.row(NAME, case.name, "reference", "arithmetic intensity", "FLOP/byte", counted, dtype=dtype)]
    for name, values in seconds.items():
        row = partial(session.row, NAME, case.name, name, dtype=dtype)
        rate = Statistic.of(amount / values)
        note = implausible(rate.median / ceiling, metric)
        if note:
            session.echo(f"{NAME} {case.name}: {name} is {note}")
        rows.append(row("time of a launch", "s", Statistic.of(values), floor, note=note))
        rows.append(row(metric, unit, rate.map(lambda value: value / 1e12), ceiling / 1e12, note=note))
    if len(seconds) > 1:
        gain = paired_ratio(seconds["reference"], seconds["kernel"])
        rows.append(session.row(NAME, case.name, "kernel", "speed-up over the reference", "x", gain, dtype=dtype))
    return rows


def implausible(share: float, metric: str) -> str:
    """Why a share of a ceiling is no share of it, or nothing."""
    if share <= PLAUSIBLE:
        return ""
    cached = "a cache held the operands, or writing in place is cheaper than a copy"
    why = cached if metric == "bandwidth" else "the large product is no ceiling for this shape"
    return f"at {share:.0%} of the measured ceiling: {why}"
