"""Suite ``scaling``: how time grows with calls, batch, tokens, depth and switch point, and what the plan says of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from segue.engine.planning.plan import Plan
from segue.models.spec import SiTSpec

from ..cases import SCALE, WEIGHT, BenchModel, Workload
from ..session import Session
from ..tables import GUIDED
from ..timing import Statistic, interleave, paired_ratio
from ..workloads import chosen_cases, gate_rules, load_workload, round_flops

NAME = "scaling"
BATCHES, FACTORS = (1, 2, 4, 8), (1, 2, 4)
SWITCHES = (0.0, 0.25, 0.5, 0.75, 1.0)
SWITCH_CALLS = 4  # the fewest that every switch point divides


@dataclass(frozen=True)
class Point:
    """One value along an axis: the model, batch, number of calls and switch point it is measured at."""

    value: float
    model: BenchModel
    batch: int
    calls: int
    switch: float = 0.5


def axes(model: BenchModel, batch: int, calls: int) -> dict[str, list[Point]]:
    """The points along every axis, smallest first."""
    spec = model.spec
    least = max(model.layers) + 1  # the weak branch skips blocks up to this one
    depths = sorted({max(least, spec.depth // 2), max(least, 3 * spec.depth // 4), spec.depth})
    shapes = [(spec.height * k // max(FACTORS), spec.width * k // max(FACTORS)) for k in FACTORS]
    sizes = [(h, w) for h, w in shapes if h and w and not h % spec.patch and not w % spec.patch]
    return {
        "calls": [Point(k * calls, model, batch, k * calls) for k in FACTORS],
        "batch": [Point(b, model, b, calls) for b in BATCHES],
        "tokens": [Point(spec.tokens(h, w), _changed(model, height=h, width=w), batch, calls) for h, w in sizes],
        "depth": [Point(depth, _with_depth(model, depth), batch, calls) for depth in depths],
        "switch": [Point(s, model, batch, max(calls, SWITCH_CALLS), s) for s in SWITCHES],
    }


def _changed(model: BenchModel, **changes) -> BenchModel:
    return replace(model, spec=replace(model.spec, **changes))


def _with_depth(model: BenchModel, depth: int) -> BenchModel:
    spec = model.spec
    if isinstance(spec, SiTSpec):
        return _changed(model, depth=depth, exits=tuple(layer for layer in spec.exits if layer < depth))
    return _changed(model, depth=depth, dual_layers=tuple(layer for layer in spec.dual_layers if layer < depth))


def run(session: Session) -> None:
    """Measure every axis of every chosen model; the bundled one is left out, its weights fix its sizes."""
    settings = session.settings
    for model, batch in chosen_cases(session):
        if model.fixed:
            session.echo(f"{NAME} {model.text}: not run, its weights fix its sizes")
            continue
        for axis, points in axes(model, batch, settings.calls).items():
            if len(points) < 2:
                session.echo(f"{NAME} {model.text} by {axis}: not run, {len(points)} points are no line")
                continue
            case = ", ".join([title(model, axis, points[0]), f"by {axis}"])
            flops = sum(round_flops(p.model, p.batch, _rules(p).values(), p.calls) for p in points)
            if session.wants(NAME, case, flops=flops):
                session.attempt(NAME, case, partial(measure, session, case, axis, points), flops)


def title(model: BenchModel, axis: str, point: Point) -> str:
    """What stays the same along an axis."""
    fixed = [model.text if axis == "batch" else f"{model.text} batch {point.batch}"]
    return ", ".join(fixed if axis == "calls" else [*fixed, f"{point.calls} calls"])


def measure(session: Session, case: str, axis: str, points: list[Point]) -> None:
    """Unguided and segmented guidance at every point, all points interleaved, and the fitted exponent of each."""
    settings = session.settings
    draws: dict[tuple[str, float], Callable] = {}
    plans: dict[tuple[str, float], Plan] = {}
    for point in points:
        for rule, workload, plan in _gated(session, case, point):
            draws[rule, point.value], plans[rule, point.value] = workload.sampler(plan), plan
    if not draws:
        return
    seconds = interleave(draws, session.timer, settings.repetitions, settings.case_limit_s)
    rows = []
    for (rule, value), values in seconds.items():
        row = partial(session.row, NAME, case, f"{rule}, {axis} {value:g}")
        rows.append(row("time of a run", "s", Statistic.of(values)))
        if rule == "sgg" and ("none", value) in seconds:
            ratio = paired_ratio(values, seconds["none", value])
            rows.append(row(GUIDED, "x", ratio, plans[rule, value].cost.relative))
    if axis != "switch":
        for rule in ("none", "sgg"):
            measured = [(value, values) for (name, value), values in seconds.items() if name == rule]
            if len(measured) > 1:
                rows.append(_exponent_row(session, case, axis, rule, measured, plans))
    session.commit(rows)


def _rules(point: Point) -> dict[str, str]:
    """Unguided and segmented guidance at the switch of a point, written in full."""
    layers = ",".join(map(str, point.model.layers))
    texts = {"none": "none", "sgg": f"sgg:scale={SCALE},weight={WEIGHT},layers={layers},switch=fraction:{point.switch}"}
    if point.switch in (0.0, 1.0):  # one segment is empty
        texts["sgg"] = "slg" if point.switch == 0.0 else "cfg"
    return texts


def _gated(session: Session, case: str, point: Point) -> Iterator[tuple[str, Workload, Plan]]:
    """Rule, workload and plan of what may be timed at a point."""
    workload = load_workload(session, point.model, point.batch)
    rules = {name: point.model.rule(text) for name, text in _rules(point).items()}
    gates = gate_rules(workload, rules, point.calls)
    for name, rule in rules.items():
        if session.passes(NAME, f"{case} {point.value:g} {name}", gates[name]):
            yield name, workload, workload.plan(rule, point.calls)


def _exponent_row(session: Session, case: str, axis: str, rule: str, measured: list, plans: dict[tuple, Plan]):
    """Slope of log time over log value, least squares, fitted in every round; expected: the same fit to the FLOPs."""
    values = np.log([value for value, _ in measured])
    times = np.log(np.array([samples for _, samples in measured]))  # [points, rounds]
    batch = {value: value if axis == "batch" else 1 for value, _ in measured}
    flops = np.log([plans[rule, value].cost.flops * batch[value] for value, _ in measured])
    slopes, expected = np.polyfit(values, times, 1)[0], np.polyfit(values, flops, 1)[0]
    return session.row(NAME, case, rule, f"exponent of time over {axis}", "1", Statistic.of(slopes), float(expected))
