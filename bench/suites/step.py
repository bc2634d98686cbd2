"""Suite ``step``: the time of one call per live set, and the waterfall from the published algorithm to the engine."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from segue.engine.core import EngineCore
from segue.engine.fp8_error import fp8_error, relative_deviation
from segue.engine.plan import Plan

from ..cases import BenchModel, Workload
from ..correctness import Gate, gate
from ..published import WATERFALL, StagedSampler, stage_flops
from ..rows import Row
from ..session import Session
from ..stages import APPROXIMATE, FP8, engine_stages, fp8_engine
from ..tables import ERROR, GAIN
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


def run(session: Session) -> None:
    """Measure every model under one rule, ``sgg`` unless the settings name another."""
    settings = session.settings
    rule = (settings.rules or ("sgg",))[0]
    cases = chosen_cases(session)
    check_rules(cases, (rule,), settings.calls)
    for model, batch in cases:
        case = f"{model.text} batch {batch}, {settings.calls} calls, {rule}"
        if session.wants(NAME, case) and applicable(session, model, rule):
            session.attempt(NAME, case, partial(measure, session, model, batch, case, rule))


def measure(session: Session, model: BenchModel, batch: int, case: str, rule: str) -> None:
    """One model: gate, then the live sets and the waterfall."""
    workload, calls = load_workload(session, model, batch), session.settings.calls
    if session.passes(NAME, case, gate_rules(workload, {rule: model.rule(rule)}, calls)[rule]):
        plan = workload.plan(model.rule(rule), calls)
        fp8 = fp8_engine(workload, session.echo)
        rows = live_set_rows(session, workload, plan, case) + waterfall_rows(session, workload, plan, fp8, case)
        session.commit(rows + fp8_rows(session, workload, plan, fp8, case))


def live_set_rows(session: Session, workload: Workload, plan: Plan, case: str) -> list[Row]:
    """Time of a single call for each live set of the plan, and relative to the conditional branch alone."""
    settings, plain = session.settings, (0,)
    program = workload.engine.prepare(plan, workload.conditions(plan), range(workload.batch), workload.state(plan))
    first_call = {plain: 0} | {live: plan.live.index(live) for live in plan.live_sets}
    names = {live: " + ".join(str(plan.branches[i]) for i in live) for live in first_call}

    def call(live: tuple[int, ...]) -> None:
        program.call.fill_(first_call[live])  # repeating a call never runs past the tables
        program.advance(live)

    timed = {names[live]: partial(call, live) for live in first_call}
    seconds = interleave(timed, session.timer, settings.repetitions, settings.case_limit_s / 2)
    workload.engine.release(program)
    rows = []
    for live, name in names.items():
        rows.append(session.row(NAME, case, name, "time of a call", "s", Statistic.of(seconds[name])))
        if live != plain:
            ratio = paired_ratio(seconds[name], seconds[names[plain]])
            expected = plan.call_cost(live)[2] / plan.call_cost(plain)[2]
            rows.append(session.row(NAME, case, name, "cost relative to an unguided call", "x", ratio, expected))
    return rows


def fp8_rows(session: Session, workload: Workload, plan: Plan, fp8: EngineCore | None, case: str) -> list[Row]:
    """What fp8 linears change, on machines too where they save no time: one network evaluation, the whole run."""
    if fp8 is None:
        return []
    conditions, state, seeds = workload.conditions(plan), workload.state(plan), list(range(workload.batch))
    error = fp8_error(workload.engine, fp8, lambda engine: engine.prepare(plan, conditions, seeds, state))
    measured = {"error of a network evaluation": error.evaluation, ERROR: error.run}
    return [session.row(NAME, case, FP8, name, "relative", once(value)) for name, value in measured.items()]


def stage_draws(
    workload: Workload, plan: Plan, fp8: EngineCore | None, echo: Callable[[str], None]
) -> dict[str, Callable[[], Tensor]]:
    """Functions that draw the batch, stage by stage from the published algorithm to all that the engine has here."""
    conditions, state = workload.conditions(plan), workload.state(plan)
    draws = {}
    for name, stages in WATERFALL.items():
        draws[name] = partial(StagedSampler(workload.engine.models, plan, workload.batch, stages).run, conditions, state)
    return draws | engine_stages(workload, plan, fp8, echo)


def stage_gates(workload: Workload, plan: Plan) -> dict[str, Gate]:
    """Every exact stage against the published algorithm, in the few calls in which rounding has not grown.

    In half precision against the same in fp32, with at most twice the error of the first stage.
    """
    short = gate_plan(workload, plan.guidance, plan.calls)
    drawn = {name: draw().clone() for name, draw in stage_draws(workload, short, None, lambda _line: None).items()}
    exact = None if workload.engine.dtype == torch.float32 else published_draw(in_single(workload), short)()
    plain = drawn[next(iter(WATERFALL))]
    return {
        name: gate(x, plain, exact, "against the published algorithm") for name, x in drawn.items() if name not in APPROXIMATE
    }


def waterfall_rows(session: Session, workload: Workload, plan: Plan, fp8: EngineCore | None, case: str) -> list[Row]:
    """Each optimisation switched on in turn.  Stages that this machine cannot run are named with the reason."""
    settings = session.settings
    draws = stage_draws(workload, plan, fp8, session.echo)
    exact = workload.sampler(plan)().clone()
    deviations = {name: relative_deviation(draw(), exact) for name, draw in draws.items() if name in APPROXIMATE}
    for name in [name for name, value in deviations.items() if not math.isfinite(value)]:
        session.echo(f"{NAME} {case} {name}: NOT TIMED, what it draws is not finite")
        del draws[name], deviations[name]
    gates = stage_gates(workload, plan)
    draws = {n: d for n, d in draws.items() if n in APPROXIMATE or session.passes(NAME, f"{case} {n}", gates[n])}
    flops = {name: stage_flops(plan, stages) for name, stages in WATERFALL.items()}
    seconds = interleave(draws, session.timer, settings.repetitions, settings.case_limit_s)
    first = next(iter(WATERFALL))
    errors = {name: value for name, value in deviations.items() if name != FP8}  # which has rows of its own
    rows = [session.row(NAME, case, name, ERROR, "relative", once(value)) for name, value in errors.items()]
    for name, values in seconds.items():
        rows.append(session.row(NAME, case, name, "time of a run", "s", Statistic.of(values)))
        if first in seconds:
            gain = paired_ratio(seconds[first], values)
            expected = flops[first] / flops[name] if name in flops else None
            rows.append(session.row(NAME, case, name, GAIN, "x", gain, expected))
    return rows
