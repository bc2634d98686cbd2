"""Suite ``e2e``: whole batches, side by side with other ways to draw them: images/s, latency, memory, energy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from segue.engine.planning.plan import Plan

from ..cases import BenchModel, Workload
from ..cost_model import roofline_seconds
from ..diffusers_loop import RULES as PEER_RULES
from ..peers import GROUPS, make_peers, missing_packages
from ..published import OUR_ROWS, PUBLISHED, stage_flops
from ..rows import Row
from ..session import Session
from ..telemetry import PeakMemory, Telemetry
from ..timing import Statistic, interleave, once, paired_ratio
from ..workloads import applicable, check_rules, chosen_cases, gate_rules, load_workload, published_draw, round_flops

NAME = "e2e"
RULES = ("none", "cfg", "sgg")
OWN = "published on our modules"  # the group whose peers are unguided sampling, CFG and published SGG on Segue's own networks
ENERGY_SECONDS = 2.0  # the energy counter of a card moves in steps of tens of milliseconds


@dataclass(frozen=True)
class Variant:
    """One way to draw the batch under a rule, what was run in words, and its plan where Segue made one."""

    draw: Callable
    rule: str
    what: str
    plan: Plan | None = None


def run(session: Session) -> None:
    """Measure every group of peers for every model; a group is a case of its own, with Segue's variants beside it."""
    settings = session.settings
    rules = settings.rules or RULES
    groups = settings.peers or (next(iter(GROUPS)), OWN, *list(GROUPS)[1:])
    for group in groups:
        if group not in (OWN, *GROUPS):
            raise ValueError(f"unknown peer {group!r}; known: {', '.join((OWN, *GROUPS))}")
    cases = chosen_cases(session)
    check_rules(cases, rules, settings.calls)
    for group in groups:
        missing = missing_packages(group) if group != OWN else []
        if missing:
            session.echo(f"peer {group}: not run, {' and '.join(missing)} not installed")
            continue
        for model, batch in cases:
            case = f"{model.text} batch {batch}, {settings.calls} calls, {group}"
            possible = [rule for rule in rules if applicable(session, model, rule)]
            flops = _flops(model, batch, possible, settings.calls)
            if session.wants(NAME, case, variants=[f"segue {rule}" for rule in possible], flops=flops):
                session.attempt(NAME, case, partial(measure, session, model, batch, case, group, possible), flops)


def _flops(model: BenchModel, batch: int, rules: list[str], calls: int) -> float:
    """Of a round: every rule by Segue and by its peer, whose segmented guidance is the published algorithm."""
    published = batch * stage_flops(model.plan("sgg", calls), PUBLISHED) if "sgg" in rules else 0
    peers = [rule for rule in rules if rule in PEER_RULES and rule != "sgg"]
    return round_flops(model, batch, [*rules, *peers], calls) + published


def measure(session: Session, model: BenchModel, batch: int, case: str, group: str, rules: list[str]) -> None:
    """One model beside one group of peers; no row where no peer runs or no rule passes its gate."""
    settings = session.settings
    workload = load_workload(session, model, batch)
    gates = gate_rules(workload, {rule: model.rule(rule) for rule in rules}, settings.calls)
    variants = {}
    for rule in rules:
        if session.passes(NAME, f"{case} {rule}", gates[rule]):
            plan = workload.plan(model.rule(rule), settings.calls)
            what = f"Segue, tables of the run included; {'; '.join(workload.engine.selection.explain())}"
            variants[f"segue {rule}"] = Variant(workload.sampler(plan), rule, what, plan)
    if not variants:
        return
    peers = own_peers(session, workload, rules) if group == OWN else _peers(session, workload, group, rules)
    if not peers:
        session.echo(f"{NAME} {case}: not run, no peer of this group draws under {', '.join(rules)}")
        return
    variants |= peers
    draws = {name: variant.draw for name, variant in variants.items()}
    seconds = interleave(draws, session.timer, settings.repetitions, settings.case_limit_s)
    session.commit(speed_rows(session, case, batch, variants, seconds) + ratio_rows(session, case, variants, seconds))
    session.commit(resource_rows(session, case, batch, variants, seconds))


def own_peers(session: Session, workload: Workload, rules: list[str]) -> dict[str, Variant]:
    """Unguided sampling, CFG and the published SGG algorithm on Segue's own networks, in plain PyTorch: needs no package."""
    made = {}
    for rule, rows in OUR_ROWS.items():
        if rule in rules:
            plan = workload.plan(workload.model.rule(rule), session.settings.calls)
            title = "sgg as published" if rule == "sgg" else rule
            made[f"segue modules {title}"] = Variant(published_draw(workload, plan), rule, rows)
    return made


def _peers(session: Session, workload: Workload, group: str, rules: list[str]) -> dict[str, Variant]:
    made = make_peers(group, workload, session.settings.calls, session.echo, rules)
    return {peer.name: Variant(peer.draw, peer.rule, peer.what) for peer in made}


def speed_rows(session: Session, case: str, batch: int, variants: dict[str, Variant], seconds: dict) -> list[Row]:
    """Latency and images/s of every variant; for Segue also the roofline of its plan and the rate it achieves."""
    settings, rows = session.settings, []
    for name, values in seconds.items():
        plan = variants[name].plan
        row = partial(session.row, NAME, case, name, note=variants[name].what)
        rooftop = None if plan is None else roofline_seconds(plan, batch, session.ceilings(), settings.torch_dtype)
        rows.append(row("latency of a batch", "s", Statistic.of(values), rooftop))
        rows.append(row("throughput", "images/s", Statistic.of(batch / values)))
        if plan:
            ceiling = session.ceilings().rate(settings.torch_dtype) / 1e12
            rows.append(row("effective rate", "TFLOP/s", Statistic.of(plan.cost.flops * batch / values / 1e12), ceiling))
    return rows


def ratio_rows(session: Session, case: str, variants: dict[str, Variant], seconds: dict) -> list[Row]:
    """How much faster Segue is than each peer under the same rule, and segmented guidance against the peer's none and CFG.

    For Segue, time relative to its own unguided sampling beside the plan's cost.
    """
    rows, base = [], seconds.get("segue none")
    for name, values in seconds.items():
        if (plan := variants[name].plan) is not None:
            if base is not None and name != "segue none":
                ratio = paired_ratio(values, base)
                rows.append(session.row(NAME, case, name, "time relative to segue none", "x", ratio, plan.cost.relative))
            continue
        rule, what = variants[name].rule, variants[name].what
        own = f"segue {rule}"
        if own in seconds:
            gain = paired_ratio(values, seconds[own])
            rows.append(session.row(NAME, case, own, f"speed-up over {name}", "x", gain, note=what))
        if rule in ("none", "cfg") and "segue sgg" in seconds:
            ratio = paired_ratio(seconds["segue sgg"], values)
            rows.append(session.row(NAME, case, "segue sgg", f"time relative to {name}", "x", ratio, note=what))
    return rows


def resource_rows(session: Session, case: str, batch: int, variants: dict[str, Variant], seconds: dict) -> list[Row]:
    """Peak memory everywhere it can be read; energy, power and clocks where the card tells.

    Each once, in a run after the timed ones.  On CUDA the weights of every variant of the case lie on the card together, and
    the replay of a graph allocates nothing: what Segue's graphs hold is not in its figure, which the row says.
    """
    device = session.settings.torch_device
    memory, telemetry = PeakMemory(device), Telemetry(device)
    rows = []
    for name, variant in variants.items():
        row = partial(session.row, NAME, case, name)
        memory.reset()
        repeats = max(1, math.ceil(ENERGY_SECONDS / float(seconds[name].min()))) if telemetry.reason is None else 1
        before = telemetry.read()
        session.timer(lambda draw=variant.draw, repeats=repeats: [draw() for _ in range(repeats)])
        after = telemetry.read()
        peak = memory.read()
        if peak is not None:
            note = "without what captured graphs hold" if device.type == "cuda" and variant.plan else ""
            rows.append(row(memory.metric, "GiB", once(peak / 2**30), note=note))
        if before and after and before.energy is not None and after.energy is not None:
            joules = (after.energy - before.energy) / (repeats * batch)
            rows.append(row("energy per image", "J", once(joules)))
        for metric, unit, value in (("power", "W", after and after.power), ("SM clock", "MHz", after and after.sm_clock)):
            if value is not None:
                rows.append(row(metric, unit, once(value)))
    return rows
