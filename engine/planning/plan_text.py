"""A plan as text a person can read, and as JSON a machine can."""

from typing import TYPE_CHECKING

import numpy as np

from .solvers import SOLVER_COLUMNS

if TYPE_CHECKING:
    from .plan import Plan  # which prints itself with this module

COLUMNS = ("calls", "sigma", "rows", "blocks", "cost", "live branches and weights")


def _span(weights: np.ndarray) -> str:
    """The weights of a branch over a run of calls, [n], from the first to the last; of samples [B, n] the range."""
    if weights.ndim == 2 and np.ptp(weights, axis=0).max() > 1e-9:
        return f"{weights.min():.3g} to {weights.max():.3g} by sample"
    first, last = weights[..., 0].flat[0], weights[..., -1].flat[0]
    return f"{first:.3g}" if abs(last - first) < 1e-9 else f"{first:.3g} to {last:.3g}"


def heading(plan: "Plan") -> str:
    """Model, size, solver and schedule in one line."""
    tokens = plan.spec.tokens(plan.height, plan.width)
    return (
        f"{plan.spec.name}  {plan.height} x {plan.width} ({tokens} tokens)  "
        f"{plan.solver.name}, {plan.schedule.steps} steps, schedule {plan.schedule.name}"
    )


def plan_text(plan: "Plan") -> str:
    """One line per run of calls with the same live branches, then the cost and the warnings."""
    calls, levels, rows, blocks, cost, branches = COLUMNS
    lines = [heading(plan), f"{calls:>9}  {levels:>15}  {rows:>4}  {blocks:>6}  {cost:>6}  {branches}"]
    for calls, levels, rows, blocks, cost, branches in run_cells(plan):
        lines.append(f"{calls:>9}  {levels:>15}  {rows:>4}  {blocks:>6}  {cost:>6}  {branches}")
    lines.append(cost_text(plan))
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return "\n".join(lines)


def run_cells(plan: "Plan") -> list[tuple[str, str, str, str, str, str]]:
    """The cells of :data:`COLUMNS` for each run of calls with the same live branches."""
    unit, table = plan.spec.forward_flops(plan.height, plan.width), []
    for run in plan.runs:
        rows, blocks, flops = plan.call_cost(run.live)
        first, last = plan.sigmas[run.start], plan.sigmas[run.stop - 1]
        weights = plan.weights[..., run.start : run.stop, :]
        names = [str(plan.branches[0])] if run.live else ["none: the velocity is zero"]
        names += [f"{plan.branches[i]} (w {_span(weights[..., i - 1])})" for i in run.live[1:]]
        reused = (weights * ~plan.evaluated[..., run.start : run.stop, :]).reshape(-1, weights.shape[-1]).any(axis=0)
        names += [f"{plan.branches[k + 1]} reused (w {_span(weights[..., k])})" for k in reused.nonzero()[0]]
        calls, levels = f"{run.start + 1}-{run.stop}", f"{first:.4f}-{last:.4f}"
        table.append((calls, levels, str(rows), str(blocks), f"{flops / unit:.3f}x", " | ".join(names)))
    return table


def cost_text(plan: "Plan") -> str:
    """The whole cost in one line."""
    cost = plan.cost
    return (
        f"total: {cost.calls} calls, {cost.evaluations} evaluations, {cost.blocks} blocks, "
        f"{cost.flops / 1e9:.4g} GFLOP per sample = {cost.relative:.3f}x unguided"
    )


def plan_dict(plan: "Plan") -> dict:
    """Everything a run needs to be repeated, with plain numbers and strings."""
    cost, reused = plan.cost, (plan.weights != 0) & ~plan.evaluated
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
        "solver_columns": list(SOLVER_COLUMNS),
        "solver_rows": plan.table.tolist(),
        "live": [list(live) for live in plan.live],
        "reused": [[int(k) + 1 for k in row.nonzero()[0]] for row in reused.reshape(-1, *reused.shape[-2:]).any(axis=0)],
        "cost": {
            "calls": cost.calls,
            "evaluations": cost.evaluations,
            "blocks": cost.blocks,
            "flops": cost.flops,
            "relative": cost.relative,
        },
        "warnings": list(plan.warnings),
    }
