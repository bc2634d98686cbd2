"""``segue calibrate``: what the command accepts.

Modules that import torch are imported inside the command, so that ``segue --help`` does not wait for them.
"""

from pathlib import Path
from typing import Annotated

import typer

from segue.engine.cli import options as o

JUDGED_FROM = 700_000  # first seed of the samples that judge

BatchOption = Annotated[int, typer.Option("--batch", help="Samples drawn at once.")]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(calibrate)


def calibrate(
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSON file to write.")],
    guidance: Annotated[str, typer.Option(*o.RULE_NAMES, help="An exact rule, as in segue sample.")] = o.DEFAULT_RULE,
    cost: Annotated[float | None, typer.Option(help="At most this, relative to unguided sampling; or give --error.")] = None,
    error: Annotated[
        float | None, typer.Option(help="At most this share of the distance between unguided and exact samples.")
    ] = None,
    model: o.ModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    weak: o.WeakOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    steps: o.StepsOption = None,
    solver: o.SolverOption = None,
    schedule: o.ScheduleOption = None,
    samples: Annotated[
        int, typer.Option(help="Samples that placements are tried on; on half of them each call is left out.")
    ] = 48,
    seed: Annotated[int, typer.Option(help="Of the first of them.")] = 0,
    judge_samples: Annotated[int, typer.Option(help="Samples that the chosen one is measured on.")] = 192,
    judge_seed: Annotated[int, typer.Option(help="Of the first of them.")] = JUDGED_FROM,
    tries: Annotated[int, typer.Option(help="Placements that are tried.")] = 12,
    batch: BatchOption = 32,
    force: o.ForceOption = False,
    json: o.JsonOption = False,
) -> None:
    """Find at which calls to evaluate the branches of a rule, and by which order to extrapolate between, by finished samples.

    Give --cost or --error.  Each call is left out alone, which predicts any set of them; the best are drawn, and the chosen
    one is measured on samples of other seeds.  The file is for segue sample --calibration and rule.calibrated(...).

    [bold]Examples[/bold]

    segue calibrate -g sgg --cost 1.15 --out sgg.json

    segue calibrate -g cfg:scale=2 --error 0.08 --steps 20 --out cfg.json
    """
    from ..quality.draw import Draw
    from .calibrate import Budget, calibrate_model
    from .search import Wanted

    budget = Budget(Draw(samples, seed, batch), Draw(judge_samples, judge_seed, batch), tries)
    how = {"heads": heads, "branch_head": branch_head, "revision": revision, "variant": variant, "weak": weak}
    source = o.Source(model, family, device, dtype or "float32", **how)
    run = o.RunOptions(steps, solver, schedule)
    calibrate_model(source, guidance, Wanted(cost, error), run, budget, out, force, json)
