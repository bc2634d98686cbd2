"""Guidance x schedule x solver -> Plan: of all samples alike, of rules of their own, or of whole requests of their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.kernels.normalized_attention import NEUTRAL
from segue.models.parameterization import Parameterization
from segue.models.spec import ModelSpec, tier_of

from ..argument_names import refuses_unknown
from ..rules.batch import Rules, RulesLike, as_rules, is_shared, plain_rules, rules_and_notes
from ..rules.branch import NEGATIVE_TEXT, Branch, Exit
from ..rules.correction import CallLevels
from ..rules.drawn import Draw, RandomCondition
from ..rules.dropped_blocks import DropBlocks
from ..rules.guidance import Guidance
from ..rules.normalized_attention import attention_numbers
from ..rules.presets import RuleLike
from ..rules.solver_corrections import scaled_rows
from .choices import check_sources, choice_warnings, drawn_by_classifiers, without_unchosen
from .classifiers import check_classes, classifier_flops, needs_decoder, resolved_classifier, traced
from .plan import ALPHA, Plan, checked_size
from .reuse import branch_reuse, branch_stops, evaluated_calls, reuse_warnings
from .schedule import Schedule
from .solver_rows import Solver, SolverRow
from .solvers import check_learned_variance, get_solver
from .term_weights import (
    channel_masks,
    correction_warnings,
    coverage_warnings,
    reference_branch,
    resolve_weights,
    rule_branches,
)


@dataclass(frozen=True)
class Request:
    """What one sample of a batch asks for."""

    rule: RuleLike
    schedule: Schedule
    solver: Solver | str = "euler"


@refuses_unknown()
def compile_plan(
    guidance: RulesLike,
    schedule: Schedule,
    solver: Solver | str,
    specs: Mapping[str, ModelSpec] | ModelSpec,
    height: int | None = None,
    width: int | None = None,
) -> Plan:
    """Resolve a guidance rule or its text, or a list of one for each sample, against a schedule and a solver for a model.

    ``specs`` maps network names (``main`` and those that guidance refers to) to their specs; ``height`` and ``width`` are
    the latent size, by default the model's own.  Raises ``ValueError`` for a layer, exit, label or network that does not
    exist; holes, overlaps, empty windows and numbers that are not the model's own are ``Plan.warnings``.
    """
    specs = {"main": specs} if isinstance(specs, ModelSpec) else specs
    guidance, notes = rules_and_notes(guidance, specs["main"])
    rules = plain_rules(guidance)
    plans = _plans(rules, [(schedule, get_solver(solver))] * len(rules), specs, height, width)
    plan = plans[0] if is_shared(guidance) else _joined(plans, guidance)
    return replace(plan, warnings=(*notes, *plan.warnings)) if notes else plan


def compile_batch(
    requests: Sequence[Request], specs: Mapping[str, ModelSpec], height: int | None = None, width: int | None = None
) -> Plan:
    """The plan of a batch whose samples have schedules and solvers of their own beside their rules.

    It goes on until the last sample has come to its end; those before it are left as they are from then on.  ``sigmas``,
    ``steps`` and ``table`` are those of the longest run, ``samples`` has each.  Raises as :func:`compile_plan`, and
    ``ValueError`` for a scheduler that makes its own steps beside another solver.
    """
    guidance = as_rules([request.rule for request in requests], specs["main"])
    runs = [(request.schedule, get_solver(request.solver)) for request in requests]
    return _joined(_plans(plain_rules(guidance), runs, specs, height, width), guidance)


def with_decoder_flops(plan: Plan, device: torch.device, decode: Callable[[Tensor], Tensor] | None) -> Plan:
    """``plan`` with the cost of classifiers behind the decoder of an engine's VAE, where one of its rules needs it."""
    size = plan.spec.channels, plan.height, plan.width
    counted = dict(plan.classifier_flops)
    for draw in counted:
        if decode is not None and needs_decoder(draw.classifier, plan.spec):
            counted[draw] = traced(resolved_classifier(draw.classifier, plan.spec, device, decode), size, device)[1]
    return replace(plan, classifier_flops=counted)


def plan_part(plan: Plan, samples: slice) -> Plan:
    """The plan of some of the samples of a batch, with the branches of their rules alone.

    The plan itself where all share it, or all are meant.
    """
    if len(plan.samples[samples]) == len(plan.samples):
        return plan
    guidance = plan.guidance.part(samples) if isinstance(plan.guidance, Guidance) else plan.guidance[samples]
    runs = [(own.schedule, own.solver) for own in plan.samples[samples]]
    return _joined(_plans(plain_rules(guidance), runs, plan.specs, plan.height, plan.width), guidance)


def _plans(
    rules: Sequence[Guidance],
    runs: Sequence[tuple[Schedule, Solver]],
    specs: Mapping[str, ModelSpec],
    height: int | None,
    width: int | None,
) -> list[Plan]:
    """The plan of each rule by its schedule and solver, over the branches of all; what is the same has one plan."""
    spec = specs["main"]
    height, width = checked_size(spec, height, width)
    solvers = [solver for _, solver in runs]
    for rule, solver in zip(rules, solvers, strict=True):
        _check_terms(rule, specs)
        check_sources(rule, rule_branches([rule]))
        check_learned_variance(solver, spec, rule.zero_steps)
    for solver in solvers:
        if any(solver is not other for other in solvers) and solver.begin() is not None:
            raise ValueError(f"{solver.name} makes the steps of a whole batch itself: it cannot serve some of its samples")
    branches = rule_branches(rules)
    for branch in branches:
        _check_branch(branch, specs)
    draws = drawn_by_classifiers(branches)
    for draw in draws:
        check_classes(draw, spec, height, width)
    # of one kind of correction, so the same for all
    references = {reference_branch(rule, rules, branches, spec) for rule in rules}
    common: dict[str, Any] = {"specs": specs, "height": height, "width": width, "branches": branches}
    kept, places = _kept(rules, branches)
    common |= {"masks": channel_masks(rules, branches, spec.channels), "kept": kept, "places": places}
    stops = [branch_stops(rule, branches) for rule in rules]
    common["adaptive"] = tuple(k + 1 for k, own in enumerate(zip(*stops, strict=True)) if any(one is not None for one in own))
    common |= {"reference": references.pop(), "earlier": max(solver.earlier for solver in solvers)}
    common |= {"classifier_flops": {draw: classifier_flops(draw.classifier, spec, height, width) for draw in draws}}
    _check_adaptive(common["adaptive"], common["kept"], common["reference"], branches)
    made: dict[tuple, Plan] = {}
    plans = []
    for rule, (schedule, solver) in zip(rules, runs, strict=True):
        key = rule, schedule, id(solver)  # a scheduler's has a configuration, which has no hash
        if key not in made:
            made[key] = _plan(rule, schedule, solver, common)
        plans.append(made[key])
    return plans


def _plan(rule: Guidance, schedule: Schedule, solver: Solver, common: Mapping[str, Any]) -> Plan:
    """The plan of one rule; ``common`` are the fields that all samples of its batch share."""
    branches, reference, spec = common["branches"], common["reference"], common["specs"]["main"]
    parameterization = Parameterization(spec)
    sigmas = parameterization.snap(schedule.array())
    _check_distinct(schedule, sigmas, spec)
    table, rows = _solver_table(solver, sigmas, parameterization, common["earlier"], rule)
    steps = np.array([row.step for row in rows])
    weights, warnings = resolve_weights(rule, branches, sigmas[:-1], sigmas[1:])
    _check_levels(rule, sigmas, weights if reference is None else weights[:, [reference - 1]])
    weights[: rule.zero_steps] = 0.0
    if rule.calibration is not None:
        rule.calibration.check_run(schedule.sigmas, solver.name, common["height"], common["width"])
    silent = steps < rule.zero_steps
    levels = CallLevels(np.array([row.sigma for row in rows]), sigmas[1:][steps], steps, schedule.steps)
    of_calls, for_choices = without_unchosen(weights[steps], branches, sigmas[:-1], steps, silent)
    attention, oddities = attention_numbers(rule.attention, sigmas[:-1])
    warnings += choice_warnings(branches, weights[steps], sigmas[:-1], steps, silent)
    warnings += coverage_warnings(rule, sigmas[:-1]) + correction_warnings(rule, branches, levels) + oddities
    reuse = branch_reuse(rule, branches)
    warnings += reuse_warnings(reuse, branches, len(rows))
    evaluated = evaluated_calls(of_calls, reuse) | for_choices
    if NEGATIVE_TEXT in branches:
        evaluated[:, branches.index(NEGATIVE_TEXT) - 1] = attention[steps, ALPHA] != 0
    return Plan(
        guidance=rule,
        schedule=schedule,
        solver=solver,
        sigmas=np.array([row.sigma for row in rows]),
        steps=steps,
        weights=of_calls,
        silent=silent,
        evaluated=evaluated,
        orders=tuple(own.order for own in reuse),
        stops=branch_stops(rule, branches),
        attention=attention[steps],
        table=table,
        warnings=tuple(warnings),
        **common,
    )


def _kept(rules: Sequence[Guidance], branches: tuple[Branch, ...]) -> tuple[tuple[int, ...], int]:
    """The branches whose directions the calls of some sample reuse, and how many directions of each are kept."""
    reuse = [branch_reuse(rule, branches) for rule in rules]
    kept = tuple(k + 1 for k, own in enumerate(zip(*reuse, strict=True)) if not all(one.is_exact for one in own))
    return kept, max((own[k - 1].order + 1 for own in reuse for k in kept if not own[k - 1].is_exact), default=1)


def _joined(plans: Sequence[Plan], rules: Rules) -> Plan:
    """The plan of a batch whose samples have ``plans`` by ``rules``."""
    for plan in plans:
        if plan.calibration is not None:
            raise ValueError(f"a calibration is of one rule for all samples, and a batch of {len(plans)} has one for each")
    owners: dict[str, list[int]] = {}
    for sample, plan in enumerate(plans):
        for warning in plan.warnings:
            owners.setdefault(warning, []).append(sample)
    warnings = tuple(
        warning if len(samples) == len(plans) else f"{warning} (sample {', '.join(map(str, samples))})"
        for warning, samples in owners.items()
    )
    longest = max(plans, key=lambda plan: plan.calls)

    def stacked(name: str, beyond: float | bool) -> np.ndarray:
        """A field of every sample; ``beyond`` its end until the longest run ends."""
        fields = [getattr(plan, name) for plan in plans]
        missing = [longest.calls - len(values) for values in fields]
        padded = zip(fields, missing, strict=True)
        return np.stack([np.pad(x, [(0, n), *[(0, 0)] * (x.ndim - 1)], constant_values=beyond) for x, n in padded])

    return replace(
        longest,
        guidance=rules,
        weights=stacked("weights", 0.0),
        evaluated=stacked("evaluated", False),
        silent=stacked("silent", True),
        attention=np.stack([_lasting(plan.attention, longest.calls) for plan in plans]),
        warnings=warnings,
        samples=tuple(plans),
    )


def _lasting(attention: np.ndarray, calls: int) -> np.ndarray:
    """Numbers of NAG for so many calls, those of no guidance after the last of their own."""
    return np.concatenate([attention, np.tile(NEUTRAL, (calls - len(attention), 1))])


def _check_adaptive(adaptive: Sequence[int], kept: Sequence[int], reference: int | None, branches: tuple[Branch, ...]) -> None:
    """Raise ``ValueError`` for a branch that stops and is needed at every call, or whose directions another sample keeps."""
    for branch in adaptive:
        if branch == reference:
            raise ValueError(f"a correction needs {branches[branch]} at every call, and the rule stops it")
        if branch in kept:
            raise ValueError(f"one rule of the batch stops {branches[branch]}, and another reuses its directions")


def _check_distinct(schedule: Schedule, sigmas: np.ndarray, spec: ModelSpec) -> None:
    """Raise ``ValueError`` for levels that differ in the schedule and are one to the model."""
    for i in np.flatnonzero((np.diff(sigmas) == 0) & (np.diff(schedule.array()) != 0)):
        first, second = schedule.sigmas[i : i + 2]
        raise ValueError(
            f"noise levels {first:.6g} and {second:.6g} are the same to {spec.name}: the nearest of its "
            f"{Parameterization.TRAIN_STEPS} levels is {sigmas[i]:.6g}"
        )


def _check_terms(rule: Guidance, specs: Mapping[str, ModelSpec]) -> None:
    """Raise ``ValueError`` for a term that the networks cannot follow."""
    spec = specs["main"]
    if rule.attention and not spec.text_tokens:
        raise ValueError(f"NAG guides by a negative prompt inside the attention to text, and {spec.name} takes class labels")
    for term in rule.terms:
        _check_branch(term.branch, specs)
        _check_condition(term.branch, spec)
        _check_draw(term.branch.condition, spec)
        if term.channels is not None and term.channels > spec.channels:
            raise ValueError(f"channels {term.channels} is out of range: {spec.name} has {spec.channels} latent channels")


def _check_branch(branch: Branch, specs: Mapping[str, ModelSpec]) -> None:
    if branch.model not in specs:
        held = ", ".join(specs)
        raise ValueError(f"no network named {branch.model!r}; the engine holds: {held} (from_pretrained takes further models)")
    spec, main = specs[branch.model], specs["main"]
    # labels, states and prompts mean the same to both
    same = ("channels", "patch", "prediction", "time", "path", "num_classes", "parents", "tiers", "text_dim", "pooled_dim")
    if any(getattr(spec, name, None) != getattr(main, name, None) for name in same):
        raise ValueError(f"network {branch.model!r} differs from the main one in one of: {', '.join(same)}")
    protected = (branch.network.protected or ()) if isinstance(branch.network, DropBlocks) else ()
    for layer in (*branch.perturbed_layers, *protected):
        if layer >= spec.depth:
            raise ValueError(f"layer {layer} does not exist: {spec.name} has layers 0 to {spec.depth - 1}")
    if isinstance(branch.network, DropBlocks):
        count, candidates = branch.network.count(spec.depth), len(branch.network.candidates(spec.depth))
        if count > candidates:
            blocks = f"{branch.network.share:.3g} of the {spec.depth} blocks of {spec.name}"
            raise ValueError(f"{blocks} are {count}, and only {candidates} are not protected")
    if isinstance(branch.network, Exit) and branch.network.layer not in spec.exits:
        known = ", ".join(map(str, spec.exits)) or "none"
        raise ValueError(f"{spec.name} has no early-exit head after layer {branch.network.layer}; it has: {known}")


def _check_levels(guidance: Guidance, sigmas: np.ndarray, weights: np.ndarray) -> None:
    """Raise ``ValueError`` for a correction that does not fit the levels of a run.  sigmas [steps + 1], weights [steps, ...].

    One of clean estimates that weighs something at level 0, and one that is for falling levels where they rise.
    """
    at_zero = sigmas[:-1] == 0
    weighs, rises = bool((weights[at_zero] != 0).any()), bool((np.diff(sigmas) > 0).any())
    for correction in guidance.corrections:
        if correction.falling and rises:
            first = int(np.flatnonzero(np.diff(sigmas) > 0)[0])
            rise = f"from {sigmas[first]:.4g} to {sigmas[first + 1]:.4g}"
            raise ValueError(f"{correction} is for noise levels that fall, and those of this run rise {rise}")
        if correction.space == "x0" and at_zero.any() and (weighs or correction.alone):
            above = "begin the levels above" if correction.alone else "give its term Window.sigma(0, 1), which begins above"
            raise ValueError(
                f"{correction} acts on clean estimates, which at level 0 are the sample itself in every branch: {above}"
            )


def _check_condition(branch: Branch, spec: ModelSpec) -> None:
    tier, above = tier_of(branch.condition), len(getattr(spec, "ancestors", ()))
    if tier and not above:
        raise ValueError(f"the condition {branch.condition!r} needs superclasses, and {spec.name} has none")
    if tier > above:
        raise ValueError(f"the condition {branch.condition!r} is out of range: {spec.name} has tiers 1 to {above}")
    if isinstance(branch.condition, int):
        classes = getattr(spec, "num_classes", 0)
        if spec.text_tokens:
            raise ValueError(f"the condition {branch.condition} is a label, and {spec.name} takes prompts")
        if not 0 <= branch.condition < classes:
            raise ValueError(f"label {branch.condition} is out of range: {spec.name} has classes 0 to {classes - 1}")


def _check_draw(condition: Any, spec: ModelSpec) -> None:
    """Raise ``ValueError`` for a drawn condition that has no labels, or no prompts, to be drawn from."""
    if not isinstance(condition, Draw):
        return
    if spec.text_tokens and condition.classes is None:
        raise ValueError(f"a {condition} of {spec.name}, which takes prompts, is drawn from classes=..., and the rule has none")
    if not spec.text_tokens and condition.classes is not None:
        raise ValueError(f"classes={condition.classes.names} are for prompts, and {spec.name} has labels of its own")
    if isinstance(condition, RandomCondition) and getattr(spec, "num_classes", 2) < 2:
        raise ValueError(f"a {condition} is one of at least two, and {spec.name} has one class")


def _solver_table(
    solver: Solver, sigmas: np.ndarray, parameterization: Parameterization, earlier: int, rule: Guidance
) -> tuple[np.ndarray, list[SolverRow]]:
    """The [N, 7 + earlier] table: the solver's rows with the network's own output ``o`` in place of ``v = m y + n o``."""
    rows = solver.rows(sigmas)
    levels = np.array([row.sigma for row in rows])
    for level in levels[parameterization.snap(levels) != levels]:
        raise ValueError(
            f"solver {solver.name!r} calls the network at noise level {level:.6g}, between the {parameterization.TRAIN_STEPS} "
            "levels that a model of a discrete chain has: use another solver"
        )
    m, n = parameterization.velocity(levels)
    scale = parameterization.input_scale(levels)
    values = np.array([(row.a, row.b, row.c, row.d, row.e, row.f) for row in rows])
    values = scaled_rows(values, levels, np.array([row.step for row in rows]) < rule.zero_steps, rule.corrections)
    a, b, c, d, e, f = values.T
    further = np.array([_padded(row.earlier, solver, earlier) for row in rows]).reshape(len(rows), earlier)
    return np.concatenate([np.stack([scale, a + b * m, b * n, c, d, e + f * m, f * n], axis=1), further], axis=1), rows


def _padded(weights: tuple[float, ...], solver: Solver, count: int) -> tuple[float, ...]:
    """A row's ``count`` coefficients of what earlier rows left, at least as many as the solver has said."""
    if len(weights) > solver.earlier:
        raise ValueError(f"solver {solver.name!r} keeps {solver.earlier} earlier rows, and a row of it weighs {len(weights)}")
    return *weights, *[0.0] * (count - len(weights))
