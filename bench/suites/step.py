"""Suite ``step``: one call per live set, the waterfall from the published algorithm to the engine, approximations alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from segue.engine.core import EngineCore
from segue.engine.fp8_error import fp8_error, relative_deviation
from segue.engine.planning.plan import Plan

from ..cases import BenchModel, Workload
from ..correctness import Gate, full_single, gate
from ..published import WATERFALL, StagedSampler, stage_flops
from ..rows import Row
from ..session import Session
from ..stages import ALONE, APPROXIMATE, EXACT, FP8, alone_draws, engine_stages, fp8_engine
from ..tables import ALONE_GAIN, ERROR, GAIN
from ..timing import Statistic, interleave, once, paired_ratio
from ..workloads import (
    applicable,
    check_rules,
    chosen_cases,
    gate_plan,
    gate_rules,
    in_single,
    load_workload,
    published_draw,
)

NAME = "step"
FIRST_STAGE, ENGINE_STAGES = next(iter(WATERFALL)), 5  # those of the engine, at most


@dataclass(frozen=True)
class Study:
    """A model under a rule, and what is measured of it; ``fp8`` holds its engine with fp8 linears once that is made."""

    session: Session
    workload: Workload
    plan: Plan
    case: str
    fp8: list[EngineCore] = field(default_factory=list)

    def attempt(self, what: str, measure: Callable[[], None], flops: float = 0.0) -> None:
        self.session.attempt(NAME, f"{self.case} {what}", measure, flops)


@dataclass(frozen=True)
class Piece:
    """Rows that are measured together and written at once: how to know them in the file, FLOPs of a round, and the work."""

    name: str
    variants: tuple[str, ...]
    flops: float
    rows: Callable[[Study], list[Row]]


def run(session: Session) -> None:
    """Measure every model under one rule, ``sgg`` unless the settings name another."""
    settings = session.settings
    rule = (settings.rules or ("sgg",))[0]
    cases = chosen_cases(session)
    check_rules(cases, (rule,), settings.calls)
    for model, batch in cases:
        case = f"{model.text} batch {batch}, {settings.calls} calls, {rule}"
        if not applicable(session, model, rule):
            continue
        wanted = pieces(model.plan(rule, settings.calls), batch)
        variants = [variant for piece in wanted for variant in piece.variants]
        if session.wants(NAME, case, variants=variants):
            session.attempt(NAME, case, partial(measure, session, model, batch, case, rule, wanted))


def pieces(plan: Plan, batch: int) -> tuple[Piece, ...]:
    """What is measured of a plan, the cheapest first."""
    whole = float(batch * plan.cost.flops)
    stages = batch * sum(stage_flops(plan, each) for each in WATERFALL.values())
    calls = whole / plan.calls * len(plan.live_sets)
    live = tuple(live_names(plan).values())
    return (
        Piece("live sets", live, calls, live_set_rows),
        Piece("waterfall", (FIRST_STAGE,), stages + ENGINE_STAGES * whole, waterfall_rows),
        Piece("alone", (EXACT,), len((EXACT, *ALONE)) * whole, alone_rows),
    )


def measure(session: Session, model: BenchModel, batch: int, case: str, rule: str, wanted: tuple[Piece, ...]) -> None:
    """One model: gate, then piece by piece what the file does not hold and the time allows."""
    todo = [piece for piece in wanted if not session.holds(NAME, case, piece.variants)]
    if not session.has_time(NAME, f"{case} {todo[0].name}", todo[0].flops):
        return
    workload, calls = load_workload(session, model, batch), session.settings.calls
    if not session.passes(NAME, case, gate_rules(workload, {rule: model.rule(rule)}, calls)[rule]):
        return
    study = Study(session, workload, workload.plan(model.rule(rule), calls), case)
    study.attempt("fp8", lambda: study.fp8.extend(filter(None, [fp8_engine(workload, session.echo)])))
    for piece in todo:
        if session.has_time(NAME, f"{case} {piece.name}", piece.flops):
            study.attempt(piece.name, lambda rows=piece.rows: session.commit(rows(study)), piece.flops)


def live_names(plan: Plan) -> dict[tuple[int, ...], str]:
    """The conditional branch alone and every live set of the plan, in words."""
    return {live: " + ".join(str(plan.branches[i]) for i in live) for live in dict.fromkeys([(0,), *plan.live_sets])}


def live_set_rows(study: Study) -> list[Row]:
    """Time of a single call for each live set of the plan, and relative to the conditional branch alone."""
    session, workload, plan = study.session, study.workload, study.plan
    settings, plain, names = session.settings, (0,), live_names(plan)
    program = workload.engine.prepare(plan, workload.conditions(plan), range(workload.batch), workload.state(plan))
    first_call = {plain: 0} | {live: plan.live.index(live) for live in plan.live_sets}

    def call(live: tuple[int, ...]) -> None:
        program.place(np.full(len(program.call), first_call[live]))  # repeating a call never runs past the tables
        program.advance(live)

    timed = {names[live]: partial(call, live) for live in first_call}
    seconds = interleave(timed, session.timer, settings.repetitions, settings.case_limit_s / 2)
    workload.engine.release(program)
    rows = []
    for live, name in names.items():
        rows.append(session.row(NAME, study.case, name, "time of a call", "s", Statistic.of(seconds[name])))
        if live != plain:
            ratio = paired_ratio(seconds[name], seconds[names[plain]])
            expected = plan.call_cost(live)[2] / plan.call_cost(plain)[2]
            rows.append(session.row(NAME, study.case, name, "cost relative to an unguided call", "x", ratio, expected))
    return rows


def fp8_rows(study: Study) -> list[Row]:
    """What fp8 linears change, on machines too where they save no time: one network evaluation, the whole run."""
    if not study.fp8:
        return []
    workload, plan = study.workload, study.plan
    conditions, state, seeds = workload.conditions(plan), workload.state(plan), list(range(workload.batch))
    error = fp8_error(workload.engine, study.fp8[0], lambda engine: engine.prepare(plan, conditions, seeds, state))
    measured = {"error of a network evaluation": error.evaluation, ERROR: error.run}
    return [study.session.row(NAME, study.case, FP8, name, "relative", once(value)) for name, value in measured.items()]


def stage_draws(
    workload: Workload, plan: Plan, fp8: EngineCore | None, echo: Callable[[str], None]
) -> dict[str, Callable[[], Tensor]]:
    """Functions that draw the batch, stage by stage from the published algorithm to all that the engine has here."""
    conditions, state = workload.conditions(plan), workload.state(plan)
    draws = {}
    for name, stages in WATERFALL.items():
        draws[name] = partial(StagedSampler(workload.engine.models, plan, workload.batch, stages).run, conditions, state)
    return draws | engine_stages(workload, plan, fp8, echo)


def stage_gates(study: Study) -> dict[str, Gate]:
    """Every exact stage against the published algorithm, in the few calls in which rounding has not grown.

    In half precision against the same in fp32, with at most twice the error of the first stage.  A stage that raises has none;
    where it is the published algorithm, no stage has one.
    """
    session, workload, plan = study.session, study.workload, study.plan
    short = gate_plan(workload, plan.guidance, plan.calls)
    drawn: dict[str, Tensor] = {}
    with full_single():
        for name, draw in stage_draws(workload, short, None, lambda _line: None).items():
            if name not in APPROXIMATE:
                study.attempt(name, lambda name=name, draw=draw: drawn.update({name: draw().clone()}))
        exact = None if workload.engine.dtype == torch.float32 else published_draw(in_single(workload), short)()
    plain = drawn.get(FIRST_STAGE)
    if plain is None:
        session.echo(f"{NAME} {study.case}: no exact stage is timed, {FIRST_STAGE!r} drew nothing to judge them by")
        return {}
    return {name: gate(x, plain, exact, "against the published algorithm") for name, x in drawn.items()}


def finite_deviations(study: Study, draws: dict[str, Callable[[], Tensor]], exact: Tensor) -> dict[str, float]:
    """How far approximations lie from the exact sample; those that raise or are not finite are said and left out."""
    found: dict[str, float] = {}
    for name, draw in draws.items():
        study.attempt(name, lambda name=name, draw=draw: found.update({name: relative_deviation(draw(), exact)}))
    for name in [name for name, value in found.items() if not math.isfinite(value)]:
        study.session.echo(f"{NAME} {study.case} {name}: NOT TIMED, what it draws is not finite")
        del found[name]
    return found


def waterfall_rows(study: Study) -> list[Row]:
    """Each optimisation switched on in turn.  Stages that this machine cannot run are named with the reason."""
    session, workload, plan, case = study.session, study.workload, study.plan, study.case
    settings = session.settings
    gates = stage_gates(study)
    draws = stage_draws(workload, plan, next(iter(study.fp8), None), session.echo)
    approximate = {name: draw for name, draw in draws.items() if name in APPROXIMATE}
    deviations = finite_deviations(study, approximate, workload.sampler(plan)().clone())
    passed = {name for name, each in gates.items() if session.passes(NAME, f"{case} {name}", each)}
    timed = {name: draw for name, draw in draws.items() if name in passed or name in deviations}
    flops = {name: stage_flops(plan, stages) for name, stages in WATERFALL.items()}
    seconds = interleave(timed, session.timer, settings.repetitions, settings.case_limit_s)
    errors = {name: value for name, value in deviations.items() if name != FP8}  # which has rows of its own
    rows = [session.row(NAME, case, name, ERROR, "relative", once(value)) for name, value in errors.items()]
    for name, values in seconds.items():
        rows.append(session.row(NAME, case, name, "time of a run", "s", Statistic.of(values)))
        if FIRST_STAGE in seconds:
            gain = paired_ratio(seconds[FIRST_STAGE], values)
            expected = flops[FIRST_STAGE] / flops[name] if name in flops else None
            rows.append(session.row(NAME, case, name, GAIN, "x", gain, expected))
    fp8_errors: list[Row] = []
    study.attempt("error of fp8", lambda: fp8_errors.extend(fp8_rows(study)))
    return rows + fp8_errors


def alone_rows(study: Study) -> list[Row]:
    """The engine with each option that is off by itself, beside the exact engine: the gain of each, and its error."""
    session, case, settings = study.session, study.case, study.session.settings
    draws = alone_draws(study.workload, study.plan, next(iter(study.fp8), None), session.echo)
    exact = draws.pop(EXACT)
    deviations = finite_deviations(study, draws, exact().clone())
    timed = {EXACT: exact} | {name: draws[name] for name in deviations}
    seconds = interleave(timed, session.timer, settings.repetitions, settings.case_limit_s)
    rows = [session.row(NAME, case, name, ERROR, "relative", once(value)) for name, value in deviations.items()]
    for name, values in seconds.items():
        rows.append(session.row(NAME, case, name, "time of a run", "s", Statistic.of(values)))
        if name != EXACT:
            rows.append(session.row(NAME, case, name, ALONE_GAIN, "x", paired_ratio(seconds[EXACT], values)))
    return rows
