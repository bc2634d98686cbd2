"""Suite ``cost``: guided over unguided time against what the plan says, and against the recipe as published."""

from collections.abc import Callable
from functools import partial

from ..cases import RULES, BenchModel
from ..published import ON_OUR_MODULES, PUBLISHED, stage_flops
from ..session import Session
from ..tables import GAIN, GUIDED
from ..timing import Statistic, interleave, paired_ratio
from ..workloads import applicable, check_rules, chosen_cases, gate_rules, load_workload, published_draw, round_flops

NAME = "cost"
BASE, AGAIN, AS_PUBLISHED = "none", "none (again)", "sgg as published"


def run(session: Session) -> None:
    """Measure every model.  ``none (again)`` is unguided sampling a second time: its ratio is the noise floor."""
    settings = session.settings
    rules = tuple(dict.fromkeys((BASE, *(settings.rules or RULES))))
    cases = chosen_cases(session)
    check_rules(cases, rules, settings.calls, published=False)
    for model, batch in cases:
        case = f"{model.text} batch {batch}, {settings.calls} calls"
        possible = [rule for rule in rules if applicable(session, model, rule)]
        flops = _flops(model, batch, possible, settings.calls)
        if session.wants(NAME, case, variants=possible, flops=flops):
            session.attempt(NAME, case, partial(measure, session, model, batch, case, possible), flops)


def _flops(model: BenchModel, batch: int, rules: list[str], calls: int) -> float:
    """Of a round: every rule, unguided sampling once more, and the published algorithm."""
    published = batch * stage_flops(model.plan("sgg", calls), PUBLISHED) if "sgg" in rules else 0
    return round_flops(model, batch, [*rules, BASE], calls) + published


def measure(session: Session, model: BenchModel, batch: int, case: str, rules: list[str]) -> None:
    """One model: gate, interleave, and the rows of what passed."""
    settings = session.settings
    workload = load_workload(session, model, batch)
    gates = gate_rules(workload, {rule: model.rule(rule) for rule in rules}, settings.calls)
    passed = [rule for rule in rules if session.passes(NAME, f"{case} {rule}", gates[rule])]
    if BASE not in passed:
        return
    plans = {rule: workload.plan(model.rule(rule), settings.calls) for rule in passed}
    draws: dict[str, Callable] = {rule: workload.sampler(plan) for rule, plan in plans.items()}
    expected = {rule: plan.cost.relative for rule, plan in plans.items()}
    draws[AGAIN], expected[AGAIN] = draws[BASE], 1.0
    notes = {}
    if "sgg" in plans:
        draws[AS_PUBLISHED], notes[AS_PUBLISHED] = published_draw(workload, plans["sgg"]), ON_OUR_MODULES
        expected[AS_PUBLISHED] = stage_flops(plans["sgg"], PUBLISHED) / plans[BASE].cost.flops
    seconds = interleave(draws, session.timer, settings.repetitions, settings.case_limit_s)
    row = partial(session.row, NAME, case)
    rows = [row(name, "time of a run", "s", Statistic.of(values)) for name, values in seconds.items()]
    for name, values in seconds.items():
        if name != BASE:
            ratio = paired_ratio(values, seconds[BASE])
            rows.append(row(name, GUIDED, "x", ratio, expected[name], notes.get(name, "")))
    if AS_PUBLISHED in seconds:
        gain = paired_ratio(seconds[AS_PUBLISHED], seconds["sgg"])
        counted = expected[AS_PUBLISHED] / expected["sgg"]
        rows.append(row("sgg", GAIN, "x", gain, counted, ON_OUR_MODULES))
    session.commit(rows)
