"""Which models and batches a run measures, and the gate that every sampling case passes before it is timed."""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from segue.engine.core import EngineCore
from segue.engine.planning.plan import Plan
from segue.engine.rules.guidance import Guidance

from .cases import BUNDLED, BenchModel, NotApplicable, Workload
from .correctness import Gate, full_single, gate
from .published import PUBLISHED, StagedSampler
from .session import Session

GATE_CALLS = 4  # two in each segment: every live set, twice
# (model, batch): what two CPU cores measure within minutes, and the models of the paper on a GPU.  On the CPU the batches
# are the least at which arithmetic dominates: below, a second row rides along and guidance costs less than planned
CPU_CASES = ((BUNDLED, 24), ("sit-b/2", 4), ("sit-xl/2@576", 4), ("sd3.5-medium@384:256", 2))
CUDA_CASES = ((BUNDLED, 24), ("dit-xl/2", 1), ("dit-xl/2", 8), ("sd3-medium", 1), ("sd3.5-medium", 1))
QUICK_CASES = (("sit-s/2", 1),)


def chosen_cases(session: Session) -> list[tuple[BenchModel, int]]:
    """The models and batches of a run, checked before any work; small ones first, so that the time holds for most of them.

    Raises ``ValueError`` for a model, size or width that does not exist; where nothing was chosen and the bundled
    checkpoints are not installed, says so and leaves them out.
    """
    settings = session.settings
    cases = CUDA_CASES if settings.torch_device.type == "cuda" else CPU_CASES
    pairs = tuple(QUICK_CASES if settings.quick else cases)
    if settings.models:
        usual = dict(reversed((*CPU_CASES, *CUDA_CASES)))  # of two batches the first
        pairs = tuple((text, usual.get(text, 1)) for text in settings.models)
    if settings.batches:
        pairs = tuple((text, batch) for text in dict(pairs) for batch in settings.batches)
    chosen = []
    for text, batch in pairs:
        try:
            chosen.append((BenchModel.parse(text, settings.size), batch))
        except FileNotFoundError as error:
            if settings.models:
                raise
            session.echo(f"{text}: not run, {error}")
    return sorted(chosen, key=lambda each: round_flops(*each, ("none",), 1))


def round_flops(model: BenchModel, batch: int, rules: Iterable[str], calls: int) -> float:
    """FLOPs of one batch drawn under each rule in turn."""
    return float(batch * sum(model.plan(rule, calls).cost.flops for rule in rules))


def check_rules(cases: list[tuple[BenchModel, int]], rules: tuple[str, ...], calls: int, published: bool = True) -> None:
    """Raise ``ValueError`` for a rule that is unknown, malformed, beyond the model or beyond the gate, before any work.

    ``published``: the gate is the published algorithm alone.
    """
    for model, _ in cases:
        for rule in rules:
            with suppress(NotApplicable):
                plan = model.plan(rule, calls)
                if plan.draws or plan.dropping:
                    raise ValueError(f"the gate of all rules draws nothing at a call, got {rule!r}")
                if published and (lacking := unpublished(plan)):
                    raise ValueError(f"the published algorithm, which gates all rules, has no {lacking}, got {rule!r}")


def unpublished(plan: Plan) -> str | None:
    """What the published algorithm has not of a rule; None where it has all."""
    if plan.corrections or plan.remembers:
        return "corrections and no reuse or stop"
    return "NAG" if any(branch.is_text for branch in plan.branches) else None


def applicable(session: Session, model: BenchModel, rule: str) -> bool:
    """Whether a model can follow a rule; says why not."""
    try:
        model.rule(rule)
    except NotApplicable as error:
        session.echo(f"{model.text} {rule}: not run, {error}")
        return False
    return True


def gate_rules(workload: Workload, rules: Mapping[str, Guidance], calls: int) -> dict[str, Gate]:
    """Every rule drawn by the engine against the plainest code that knows it, on the same networks and in few calls.

    That is the published algorithm, or the engine on reference functions.  In as many calls as are timed where the few would
    not have the same live sets.  In half precision the plain code also runs in fp32, as the reference of both.
    """
    plans = {name: gate_plan(workload, rule, calls) for name, rule in rules.items()}
    exact: dict[str, Tensor] = {}
    with full_single():
        drawn = {name: workload.sampler(plan)().clone() for name, plan in plans.items()}
        plain = {name: plain_draw(workload, plan)() for name, plan in plans.items()}
        if workload.engine.dtype != torch.float32:
            single = in_single(workload)
            exact = {name: plain_draw(single, plan)() for name, plan in plans.items()}
    code = {
        name: "engine on reference functions" if unpublished(plan) else "published algorithm" for name, plan in plans.items()
    }
    return {name: gate(drawn[name], plain[name], exact.get(name), f"{name} against the {code[name]}") for name in plans}


def gate_plan(workload: Workload, rule: Guidance, calls: int) -> Plan:
    """A shorter plan that evaluates what the timed one evaluates: the same sets of live branches."""
    timed = workload.plan(rule, calls)
    if calls <= GATE_CALLS or timed.remembers:
        return timed
    short = workload.plan(rule, GATE_CALLS)
    alike = (short.branches, set(short.live_sets)) == (timed.branches, set(timed.live_sets))
    return short if alike else timed


def in_single(workload: Workload) -> Workload:
    """The workload with its weights in fp32: itself, or with copies of the networks."""
    engine = workload.engine
    if engine.dtype == torch.float32:
        return workload
    models = {name: copy.deepcopy(model).float() for name, model in engine.models.items()}
    return Workload(workload.model, EngineCore(models.pop("main"), models, engine.device, torch.float32), workload.batch)


def plain_draw(workload: Workload, plan: Plan) -> Callable[[], Tensor]:
    """A function that draws the batch as published, or, by a rule that was not, by the engine on reference functions."""
    if not unpublished(plan):
        return published_draw(workload, plan)
    engine = workload.engine
    models = dict(engine.models)
    core = EngineCore(models.pop("main"), models, engine.device, engine.dtype, kernels="reference", graphs=False)
    return Workload(workload.model, core, workload.batch).sampler(plan)


def published_draw(workload: Workload, plan: Plan) -> Callable[[], Tensor]:
    """A function that draws the batch as published: two rows always, a whole weak pass, modulation in every call."""
    sampler = StagedSampler(workload.engine.models, plan, workload.batch, PUBLISHED)
    return partial(sampler.run, workload.conditions(plan), workload.state(plan))


def load_workload(session: Session, model: BenchModel, batch: int) -> Workload:
    """The model on the device and in the dtype of the session."""
    settings = session.settings
    return Workload.make(model, batch, settings.torch_device, settings.torch_dtype)
