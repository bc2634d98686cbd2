"""A plan as text a person can read, and as JSON a machine can."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from segue.models.attention_kind import FULL_ATTENTION

from ..rules.drawn import Chooser, ClassifierReference
from ..rules.rule_text import shown_rule
from .solver_rows import SOLVER_COLUMNS

if TYPE_CHECKING:
    from ..rules.branch import Branch
    from .plan import Plan, Run  # which prints itself with this module

FLOPS_UNITS = {9: "GFLOP", 12: "TFLOP", 15: "PFLOP"}
COLUMNS = ("calls", "sigma", "rows", "blocks", "cost", "live branches and weights")


def _span(weights: np.ndarray) -> str:
    """The weights of a branch over a run of calls, [n], from the first to the last; of samples [B, n] the range."""
    if weights.ndim == 2 and np.ptp(weights, axis=0).max() > 1e-9:
        return f"{weights.min():.3g} to {weights.max():.3g} by sample"
    first, last = weights[..., 0].flat[0], weights[..., -1].flat[0]
    return f"{first:.3g}" if abs(last - first) < 1e-9 else f"{first:.3g} to {last:.3g}"


def _inside(numbers: np.ndarray) -> str:
    """The numbers of NAG over a run of calls, [n, 3], or of samples [B, n, 3]."""
    return "nag " + ", ".join(f"{name} {_span(numbers[..., i])}" for i, name in enumerate(("scale", "tau", "alpha")))


def heading(plan: "Plan") -> str:
    """Model, size, solver and schedule in one line."""
    tokens = plan.spec.tokens(plan.height, plan.width)
    attention = getattr(plan.spec, "attention", FULL_ATTENTION)
    approximate = "" if attention == FULL_ATTENTION else f", attention {attention} (approximate)"
    return (
        f"{plan.spec.name}  {plan.height} x {plan.width} ({tokens} tokens)  "
        f"{plan.solver.name}, {plan.schedule.steps} steps, schedule {plan.schedule.name}{approximate}"
    )


def plan_summary(plan: "Plan") -> str:
    """Model, rule, solver and cost in a few words."""
    size = f"{plan.spec.name} {plan.height} x {plan.width}"
    how = f"{plan.schedule.steps} steps of {plan.solver.name}, schedule {plan.schedule.name}"
    return f"{size}: {shown_rule(plan.guidance)}, {how}, {'at most ' * bool(plan.adaptive)}{plan.cost.relative:.2f}x unguided"


def plan_text(plan: "Plan") -> str:
    """One line per run of calls with the same live branches, then the cost and the warnings."""
    cells = [COLUMNS, *run_cells(plan)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(COLUMNS) - 1)]
    lines = [heading(plan)]
    for line in cells:
        lines.append("  ".join([*(cell.rjust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]))
    lines += [f"then: {correction}" for correction in plan.corrections]
    lines += [*legend(plan), *cost_lines(plan)]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return "\n".join(lines)


def run_cells(plan: "Plan") -> list[tuple[str, str, str, str, str, str]]:
    """The cells of :data:`COLUMNS` for each run of calls with the same live branches; runs that take turns share a line."""
    unit, table = plan.spec.forward_flops(plan.height, plan.width), []
    for runs in _folded(plan):
        live, calls = runs[0].live, np.concatenate([np.arange(run.start, run.stop) for run in runs])
        rows, blocks, flops = plan.call_cost(live)
        first, last = plan.sigmas[calls[0]], plan.sigmas[calls[-1]]
        weights, reused = plan.weights[..., calls, :], plan.reused[calls].any(axis=0)
        names = [str(plan.branches[0])] if live else ["none: the velocity is zero"]
        guiding = [i for i in live[1:] if not plan.branches[i].is_text]
        names += [f"{plan.branches[i]}{_weight_cell(plan.branches[i], weights[..., i - 1])}" for i in guiding]
        names += [f"{plan.branches[i]} ({_inside(plan.attention[..., calls, :])})" for i in live if plan.branches[i].is_text]
        names += [f"{plan.branches[k + 1]} reused (w {_span(weights[..., k])})" for k in np.flatnonzero(reused)]
        levels = f"{first:.4f}-{last:.4f}" if len(calls) > 1 else f"{first:.4f}"
        table.append((_numbers(runs), levels, str(rows), str(blocks), f"{flops / unit:.3f}x", " | ".join(names)))
    return table


def _weight_cell(branch: "Branch", weights: np.ndarray) -> str:
    """What a live branch weighs over a run of calls; a classifier, and what only a classifier looks at, weigh nothing."""
    if isinstance(branch.network, Chooser):
        return ""
    if not weights.any():
        return " (for the classifier)"
    draw = branch.condition
    if not isinstance(draw, ClassifierReference) or (draw.swaps and not draw.gain):
        return f" (w {_span(weights)})"
    return (
        f" (w {_span(weights)} times 1 - p)"
        if not draw.swaps
        else f" (w {_span(weights)}, swapped times 1 + {draw.gain:g} (1 - p))"
    )


def _numbers(runs: "Sequence[Run]") -> str:
    """The calls of runs at equal distances, counted from 1."""
    each = [f"{run.start + 1}-{run.stop}" if run.stop - run.start > 1 else str(run.stop) for run in runs]
    return f"{each[0]}, {each[1]} ... {each[-1]}" if len(each) > 2 else ", ".join(each)


def _folded(plan: "Plan") -> "list[tuple[Run, ...]]":
    """The runs in order, those of a pattern that comes at least twice in a row gathered: as where directions are reused."""
    runs, reused = plan.runs, plan.reused
    kinds = [(run.live, run.stop - run.start, tuple(reused[run.start].tolist())) for run in runs]
    lines, first = [], 0
    while first < len(runs):
        period, stop = _pattern(kinds, first)
        lines += [tuple(runs[first + place : stop : period]) for place in range(period)]
        first = stop
    return lines


def _pattern(kinds: Sequence[tuple], first: int) -> tuple[int, int]:
    """The shortest pattern that begins at ``first`` and comes at least twice: its length, and where it ends; (1, the next)."""
    for period in range(2, (len(kinds) - first) // 2 + 1):
        stop = first + period
        while stop < len(kinds) and kinds[stop] == kinds[stop - period]:
            stop += 1
        if stop >= first + 2 * period:
            return period, stop
    return 1, first + 1


def legend(plan: "Plan") -> list[str]:
    """A line that says what w is, where a rule has a scale instead, and one for a branch that stops."""
    scaled = any(branch.condition != "cond" and branch.network is None for branch in plan.branches)
    lines = ["w: the added weight of a branch, for cfg its scale less 1"] if scaled else []
    for draw, flops in plan.classifier_flops.items():
        work = "operations unknown and not counted" if flops is None else f"{flops_text(flops)} each time"
        when = (
            "at the call before, and p the share of the own class"
            if draw.lag
            else "in the call, and p the share of the own class"
        )
        lines.append(f"{Chooser(draw)}: {work}; the label is chosen {when}")
    for branch in plan.adaptive:
        stops = {stop for own in plan.samples or (plan,) if (stop := own.stops[branch - 1]) is not None}
        cosines = " or ".join(f"{stop:g}" for stop in sorted(stops))
        lines.append(
            f"{plan.branches[branch]} stops for a sample once its cosine with cond passes {cosines}; the host polls between "
            "calls and drops it when it has stopped for all"
        )
    return lines


def cost_lines(plan: "Plan") -> list[str]:
    """The whole cost, and where the rule is calibrated what the exact one costs and how far this is from it."""
    calibration = plan.calibration
    if calibration is None:
        return [cost_text(plan)]
    interval = f"{calibration.error:.3f} ({calibration.low:.3f} to {calibration.high:.3f})"
    return [
        cost_text(plan),
        f"exact {calibration.exact_cost:.3f}x, calibrated {plan.cost.relative:.3f}x unguided, error {interval} of the distance "
        f"between unguided and exact samples, median of {calibration.samples}",
    ]


def cost_text(plan: "Plan") -> str:
    """The whole cost in one line."""
    cost = plan.cost
    texts = f"{cost.text_blocks} blocks of a text alone, " if cost.text_blocks else ""
    most = "at most " if plan.adaptive else ""
    return (
        f"total: {most}{cost.calls} calls, {cost.evaluations} evaluations, {cost.blocks} blocks, {texts}"
        f"{flops_text(cost.flops)} per sample = {cost.relative:.3f}x unguided"
    )


def flops_text(flops: int) -> str:
    """A number of operations in the unit that leaves one to three digits before the point, up to PFLOP."""
    power = next((power for power in (15, 12) if flops >= 10**power), 9)
    return f"{flops / 10**power:.4g} {FLOPS_UNITS[power]}"


def plan_dict(plan: "Plan") -> dict:
    """Everything a run needs to be repeated, with plain numbers and strings."""
    cost = plan.cost
    return {
        "model": plan.spec.name,
        "height": plan.height,
        "width": plan.width,
        "solver": plan.solver.name,
        "scheduler": plan.solver.record(),
        "schedule": plan.schedule.name,
        "steps": plan.schedule.steps,
        "schedule_sigmas": list(plan.schedule.sigmas),
        "branches": [str(branch) for branch in plan.branches],
        "sigmas": plan.sigmas.tolist(),
        "weights": plan.weights.tolist(),
        **({"attention": plan.attention.tolist()} if any(branch.is_text for branch in plan.branches) else {}),
        "solver_columns": [*SOLVER_COLUMNS, *(f"earlier_{i}" for i in range(plan.earlier))],
        "solver_rows": plan.table.tolist(),
        "live": [list(live) for live in plan.live],
        "reused": [[int(k) + 1 for k in row.nonzero()[0]] for row in plan.reused],
        "cost": {
            "calls": cost.calls,
            "evaluations": cost.evaluations,
            "blocks": cost.blocks,
            "flops": cost.flops,
            "relative": cost.relative,
            **({"text_blocks": cost.text_blocks} if cost.text_blocks else {}),
            "at_most": bool(plan.adaptive),
        },
        "calibration": None if plan.calibration is None else plan.calibration.to_dict(),
        "warnings": list(plan.warnings),
    }
