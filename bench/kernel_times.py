"""How long each kernel of a step takes on this GPU: replays of the captured graph, timed kernel by kernel by the driver.

``python -m segue.bench.kernel_times MODEL --out FILE`` prints tables, and adds one JSON object for each live set to ``FILE``.
The census counts and predicts the same kernels; here they are measured, with the time in which none of them runs.
"""

import argparse
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from segue.engine.device import resolve_device, resolve_dtype
from segue.engine.planning.plan import Plan

from .cards import card_of
from .cases import BenchModel, Workload
from .census import Census, StepCensus, take_census
from .kernel_record import ATTENTION, COPY, KINDS, OWN, PRODUCT, PYTORCH
from .rows import check_writable
from .telemetry import device_name

REPLAYS = 10
WARM_UP = 3
WIDTH = 150
PRODUCTS = re.compile(r"gemm|gemv|cutlass|nvjet|xmma|cublas|splitK|s161616|bmm", re.IGNORECASE)
ATTENTIONS = re.compile(r"flash|fmha|sdpa|cudnn_generated", re.IGNORECASE)
COPIES = re.compile(r"^Mem(cpy|set)")


@dataclass(frozen=True)
class Span:
    """One run of a kernel, as the profiler saw it: microseconds on its own clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a step, in the order of their starts; ``microseconds`` is the median over the replays."""

    name: str
    kind: str
    microseconds: float


@dataclass(frozen=True)
class StepTime:
    """``wall``: microseconds of a step from its first kernel to its last; ``busy``: in which at least one kernel runs."""

    wall: float
    busy: float
    kernels: tuple[KernelTime, ...]

    def of_kind(self, kind: str) -> list[KernelTime]:
        return [kernel for kernel in self.kernels if kernel.kind == kind]

    def by_name(self) -> dict[str, list[KernelTime]]:
        """The kernels of one name together, those that take the most time first."""
        found: dict[str, list[KernelTime]] = {}
        for kernel in self.kernels:
            found.setdefault(kernel.name, []).append(kernel)
        return dict(sorted(found.items(), key=lambda item: -total(item[1])))


def total(kernels: Iterable[KernelTime]) -> float:
    """Microseconds of kernels together."""
    return sum(kernel.microseconds for kernel in kernels)


def busy_time(spans: Iterable[Span]) -> float:
    """Microseconds that the union of spans covers."""
    covered, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        covered += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return covered


def step_time(spans: list[Span], replays: int, own: frozenset[str]) -> StepTime:
    """The medians over replays of one step that ran one after the other; ``own``: names of this project's kernels.

    Raises ``ValueError`` where there are none, or where the replays do not run the same kernels.
    """
    ordered, count = sorted(spans, key=lambda span: span.start), len(spans) // replays
    if not spans:
        raise ValueError("the profiler saw no kernels; it needs the driver's own interface (CUPTI)")
    parts = [ordered[i * count : (i + 1) * count] for i in range(replays)]
    names = [span.name for span in parts[0]]
    if len(spans) % replays or any([span.name for span in part] != names for part in parts):
        raise ValueError(f"{len(spans)} kernels are no {replays} replays of the same step")
    times = [median(span.end - span.start for span in same) for same in zip(*parts, strict=True)]
    kernels = tuple(KernelTime(name, kind_of(name, own), time) for name, time in zip(names, times, strict=True))
    wall = median(max(span.end for span in part) - part[0].start for part in parts)
    return StepTime(wall, median(busy_time(part) for part in parts), kernels)


def kind_of(name: str, own: frozenset[str]) -> str:
    """The kind of a kernel as the census has them, by its name."""
    if COPIES.search(name):
        return COPY
    if name in own:
        return OWN
    if ATTENTIONS.search(name) or name == "attention_kernel":
        return ATTENTION
    return PRODUCT if PRODUCTS.search(name) else PYTORCH


def profiled(workload: Workload, plan: Plan, live: tuple[int, ...], replays: int = REPLAYS) -> list[Span]:
    """Every kernel of ``replays`` replays of the step with the branches ``live``."""
    program = workload.engine.prepare(plan, workload.conditions(plan), range(workload.batch), workload.state(plan))
    first_call = 0 if live == (0,) else plan.live.index(live)

    def replay(times: int) -> None:
        for _ in range(times):
            program.place(np.full(len(program.call), first_call))
            program.advance(live)
            torch.cuda.synchronize()

    replay(WARM_UP)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        replay(replays)
    workload.engine.release(program)
    on_device = (event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return [Span(event.name, event.time_range.start, event.time_range.end) for event in on_device]


def own_names(step: StepCensus) -> frozenset[str]:
    return frozenset(kernel.name for kernel in step.kernels if kernel.kind == OWN)


def step_tables(name: str, time: StepTime, step: StepCensus, top: int) -> list[Table]:
    """By kind, measured beside predicted, and the slowest kernels."""
    predicted = {kind: total for (kind,), total in step.groups("kind").items()}
    idle, expected = 1 - time.busy / time.wall, step.total().seconds * 1e3
    title = f"{name}: {time.wall / 1e3:.3f} ms, idle {idle:.1%}; predicted {expected:.3f} ms"
    kinds = Table("kind", "kernels", "ms", "share", "kernels predicted", "ms predicted", title=title, title_justify="left")
    for kind in (*KINDS, COPY):
        kernels = time.of_kind(kind)
        if not kernels and kind not in predicted:
            continue
        count = sum(number for kernel, number in step.kernels.items() if kernel.kind == kind)
        expected = predicted[kind].seconds * 1e3 if kind in predicted else 0.0
        spent = total(kernels)
        kinds.add_row(kind, str(len(kernels)), f"{spent / 1e3:.3f}", f"{spent / time.wall:.1%}", str(count), f"{expected:.3f}")
    slowest = Table("kernel", "kind", "times", "us each", "ms", "share", title_justify="left")
    for name, kernels in list(time.by_name().items())[:top]:
        each, spent = total(kernels) / len(kernels), total(kernels)
        cells = f"{each:.1f}", f"{spent / 1e3:.3f}", f"{spent / time.wall:.1%}"
        slowest.add_row(name[:90], kernels[0].kind, str(len(kernels)), *cells)
    return [kinds, slowest]


def measure(model: BenchModel, rule: str, batch: int, dtype: torch.dtype, calls: int, top: int, out: Path) -> None:
    """Profile every live set of a rule, print its tables and add its times to ``out``.

    Raises ``ValueError`` for bad options, without a CUDA device, and where the profiler sees no kernels.
    """
    device = resolve_device("cuda")
    check_writable(out)
    census: Census = take_census(model, card_of(device_name(device), []), rule, batch, dtype, calls=calls)
    workload = Workload.make(model, batch, device, dtype)
    plan, console = workload.plan(model.rule(rule), calls), Console(width=WIDTH)
    for line in workload.engine.selection.explain():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for live, step in zip(dict.fromkeys([(0,), *plan.live_sets]), census.steps, strict=True):
        time = step_time(profiled(workload, plan, live), REPLAYS, own_names(step))
        name = f"{model.text} batch {batch}, {' + '.join(step.branches)}"
        for table in step_tables(name, time, step, top):
            console.print(table)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": name, "dtype": str(dtype), "device": device_name(device), **asdict(time)}) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="+", help="as for segue bench census: NAME, NAME@WIDTH or NAME:PIXELS")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to add to")
    parser.add_argument("--rule", default="sgg")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--calls", type=int, default=28)
    parser.add_argument("--top", type=int, default=14)
    given = parser.parse_args()
    try:
        dtype, models = resolve_dtype(given.dtype, resolve_device("cuda")), [BenchModel.parse(text) for text in given.model]
        for model in models:
            measure(model, given.rule, given.batch, dtype, given.calls, given.top, given.out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
