"""Suite ``kernels``: every fused operation beside its PyTorch reference, in TB/s or TFLOP/s against the measured ceilings."""

from collections.abc import Callable
from functools import partial

import torch

from segue.kernels.catalogue import SIZES, Case, Factory, Size, cases
from segue.kernels.trial import captured, one_pass
from segue.kernels.triton_runtime import unavailable

from ..attention_backends import attention_backends
from ..ceilings import Ceilings, dtype_name
from ..kernel_timing import argument_sets, kernel_gate
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
    chosen = [case for size in chosen_sizes(session) for case in cases(size, dtype)]
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


def chosen_sizes(session: Session) -> list[Size]:
    """The sizes whose names begin as the settings say, in the order of the settings; else all that the device is fit for.

    Raises ``ValueError`` for a beginning that no name has.
    """
    settings = session.settings
    if not settings.models:
        return list(SIZES if settings.torch_device.type == "cuda" and not settings.quick else SIZES[:CPU_SIZES])
    chosen: dict[str, Size] = {}
    for text in settings.models:
        found = {size.name: size for size in SIZES if size.name.lower().startswith(text.lower())}
        if not found:
            raise ValueError(f"no size of the kernels begins with {text!r}; known: {', '.join(size.name for size in SIZES)}")
        chosen |= found
    return list(chosen.values())


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
    """One operation: its implementations through their gates, then all interleaved, replayed from graphs on CUDA."""
    settings = session.settings
    device = settings.torch_device

    def make(seed: int) -> tuple:
        return case.arguments(Factory(device, case.dtype, seed))

    functions = {"reference": case.reference} | _correct(session, case, make, compiled)
    if compiled and len(functions) == 1:
        return
    sets = argument_sets(make, case.reference, device)
    draws = {}
    for name, function in functions.items():
        try:
            draws[name] = (captured if device.type == "cuda" else one_pass)(function, sets)
        except Exception as error:  # an operation that cannot be captured must not end the suite
            session.echo(f"{NAME} {case.name}: {name} not run, {_reason(error)}")
    if draws:
        seconds = interleave(draws, session.timer, settings.repetitions, settings.case_limit_s)
        seconds = {name: values / len(sets) for name, values in seconds.items()}
        session.commit(operation_rows(session, case, ceilings, seconds))


def _correct(session: Session, case: Case, make: Callable[[int], tuple], compiled: bool) -> dict[str, Callable]:
    """The implementations beside the reference that pass their gate: the kernel, and for attention those of PyTorch."""
    passed: dict[str, Callable] = {}

    def admit(name: str, function: Callable) -> None:
        what = case.name if name == "kernel" else f"{case.name}, {name}"
        gate = kernel_gate(function, case.reference, make(0), what, case.operation, case.backend)
        if session.passes(NAME, gate.what, gate):
            passed[name] = function

    if compiled:
        session.attempt(NAME, case.name, partial(admit, "kernel", case.kernel))
    others = attention_backends(session.settings.torch_device) if case.operation == "attention" else {}
    for name, function in others.items():
        try:
            admit(name, function)
        except Exception as error:  # a package that is missing, a precision or a card that it does not serve: no failure
            session.echo(f"{NAME} {case.name}: {name} not run, {_reason(error)}")
    return passed


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


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
    for name in seconds.keys() - {"reference"} if "reference" in seconds else ():
        gain = paired_ratio(seconds["reference"], seconds[name])
        rows.append(session.row(NAME, case.name, name, "speed-up over the reference", "x", gain, dtype=dtype))
    return rows


def implausible(share: float, metric: str) -> str:
    """Why a share of a ceiling is no share of it, or nothing."""
    if share <= PLAUSIBLE:
        return ""
    cached = "a cache held the operands, or writing in place is cheaper than a copy"
    why = cached if metric == "bandwidth" else "the large product is no ceiling for this shape"
    return f"at {share:.0%} of the measured ceiling: {why}"
