"""``segue distill``: guidance of a model into an adapter, by which one evaluation a step does what the rule does.

Modules that import torch are imported inside the command, so that ``segue --help`` does not wait for them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.engine.cli import options as o

if TYPE_CHECKING:
    from ..run_folder import Start

ADAPTER, STATES, LENGTH = "Adapter", "States it is trained at", "Length and optimiser"


def _option(*names: str, panel: str | None = None, **settings: Any):
    return typer.Option(*names, rich_help_panel=panel, **settings)


def distill(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapter, state and log; for an SD3 the LoRA's.")],
    model: Annotated[
        str | None, typer.Argument(help="As --model of segue sample: a bundled name, a checkpoint, an SD3 pipeline's folder.")
    ] = None,
    guidance: Annotated[str | None, _option("--guidance", "-g", panel="Guidance", help="The rule; default sgg.")] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--fresh", help="Continue the run in the folder / replace it.")
    ] = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    t5: o.T5Option = None,
    weak: o.WeakOption = None,
    prompts: Annotated[
        Path | None, _option("--prompts", panel="Prompts", help="Text file, a prompt a line, for an SD3.")
    ] = None,
    negative_prompt: Annotated[str | None, _option("--negative-prompt", panel="Prompts", help="Of all prompts.")] = None,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    rank: Annotated[int | None, _option("--rank", panel=ADAPTER, help="Of the adapter; default 12.")] = None,
    alpha: Annotated[
        float | None, _option("--alpha", panel=ADAPTER, help="The product is times alpha / rank; default rank.")
    ] = None,
    targets: Annotated[
        str | None,
        _option("--targets", panel=ADAPTER, help="Of qkv, proj, fc1, fc2, adaLN, final; default all but final."),
    ] = None,
    layers: Annotated[
        str | None, _option("--layers", panel=ADAPTER, help="Blocks that are adapted: 0-5,9; default all.")
    ] = None,
    scales: Annotated[
        str | None,
        _option("--scales", panel=ADAPTER, help="LOW,HIGH: makes the strength an input; 0 is unguided, 1 the rule."),
    ] = None,
    sampling_steps: Annotated[
        int | None, _option("--sampling-steps", panel=STATES, help="Steps of a trajectory; default 28.")
    ] = None,
    solver: o.SolverOption = None,
    schedule: o.ScheduleOption = None,
    own: Annotated[
        float | None, _option("--own", panel=STATES, help="Share of trajectories that are the student's own.")
    ] = None,
    levels: Annotated[int | None, _option("--levels", panel=STATES, help="States used of each trajectory.")] = None,
    level_weights: Annotated[
        str | None,
        _option(
            "--level-weights", panel=STATES, help="uniform; steps: by the step squared; effect: that on the end, measured."
        ),
    ] = None,
    steps: Annotated[int | None, _option("--steps", panel=LENGTH, help="Optimiser steps.")] = None,
    minutes: Annotated[float | None, _option("--minutes", panel=LENGTH, help="End after this much training time.")] = None,
    batch_size: Annotated[int | None, _option("--batch-size", panel=LENGTH, help="Trajectories a step.")] = None,
    micro_batches: Annotated[int | None, _option("--micro-batches", panel=LENGTH, help="Parts of a batch.")] = None,
    learning_rate: Annotated[float | None, _option("--learning-rate", panel=LENGTH, help="Peak learning rate.")] = None,
    warmup: Annotated[int | None, _option("--warmup", panel=LENGTH, help="Steps up to the peak.")] = None,
    ema: Annotated[float | None, _option("--ema", panel=LENGTH, help="Decay of the average of the adapter.")] = None,
    seed: Annotated[int | None, _option("--seed", panel=LENGTH, help="Of the adapter, the noise and the labels.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default cuda if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (autocast) or float32, of the student.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    snapshot_every: Annotated[int | None, typer.Option(help="Steps between adapters that are kept; 0: none.")] = None,
    json: o.JsonOption = False,
) -> None:
    """Train an adapter by which one evaluation a step predicts a guided velocity; no data is needed.

    For a DiT or SiT the folder's model.safetensors is the adapter, which --adapter of segue sample takes.
    For a Stable Diffusion 3 the folder is a LoRA that load_lora_weights of diffusers, and peft, read.
    Ctrl-C finishes the step in hand, saves, and exits with 130; --resume goes on.

    [bold]Examples[/bold]

    segue distill herbarium -g sgg --out runs/herbarium-sgg

    segue distill herbarium -g cfg:scale=3 --scales 0,1.5 --targets qkv,proj,fc1,fc2,adaLN --out runs/cfg

    segue distill sd3.5-medium/ --prompts prompts.txt -g sgg --steps 1000 --batch-size 4 --out sgg-lora
    """
    import json as text

    from ..settings import TrainSettings
    from ..showing import show_run
    from .assembly import DEFAULT_SETTINGS, make_trainer, resumed_teaching

    given = {
        "steps": steps,
        "minutes": minutes,
        "batch_size": batch_size,
        "micro_batches": micro_batches,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "ema": ema,
        "seed": seed,
        "device": device or _default_device(),
        "dtype": dtype,
        "checkpoint_every": checkpoint_every,
        "snapshot_every": snapshot_every,
    }
    given = {name: value for name, value in given.items() if value is not None}
    reading = {
        "family": family,
        "heads": heads,
        "exit_layer": branch_head,
        "revision": revision,
        "variant": variant,
        "t5": t5,
        "models": None if weak is None else {o.WEAK: weak},
    }
    low_rank = {"rank": rank, "alpha": alpha, "targets": targets, "layers": layers}
    states = {"steps": sampling_steps, "solver": solver, "own": own, "levels": levels, "weights": level_weights}
    what: dict[str, Any] = {"model": model, "guidance": guidance, "schedule": schedule, "scales": scales}
    what |= {"prompts": prompts, "negative_prompt": negative_prompt, "height": height, "width": width}
    if resume:
        _refuse(what | reading | low_rank | states, out)
        teaching, values = resumed_teaching(out)
    else:
        teaching, values = _teaching(what, reading, low_rank, states), _defaults(DEFAULT_SETTINGS)
    start: Start = "resume" if resume else "new" if resume is None else "fresh"
    trainer = make_trainer(teaching, TrainSettings.from_dict(values | given), out, start)
    if resume and trainer.processes.first:
        typer.echo(f"resuming {trainer.spec.name} after step {trainer.step}", err=True)
    code = show_run(trainer)
    if json and trainer.processes.first:
        rows = trainer.folder.log_rows()
        summary = {"folder": str(out), "step": trainer.step, "seconds": round(trainer.seconds, 1), "finished": code == 0}
        print(text.dumps(summary | {"spec": trainer.spec.to_dict(), "log": rows[-1] if rows else None}), flush=True)
    if code:
        raise typer.Exit(code)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _defaults(settings: Any) -> dict[str, Any]:
    """The usual settings of a distillation, one part of a batch for each process."""
    import os
    from dataclasses import asdict

    return asdict(settings) | {"micro_batches": int(os.environ.get("WORLD_SIZE", "1"))}


def _teaching(what: dict, reading: dict, low_rank: dict, states: dict) -> Any:
    """The options as what is distilled; raises ``ValueError`` for any that cannot be."""
    from segue.engine.rules.integers import parse_integers
    from segue.models.adapted import AdapterSpec
    from segue.models.low_rank import LowRankSpec

    from .assembly import Teaching
    from .spec import TrajectorySpec

    chosen = {name: value for name, value in low_rank.items() if value is not None}
    if "targets" in chosen:
        chosen["targets"] = tuple(target.strip() for target in chosen["targets"].split(","))
    if "layers" in chosen:
        chosen["layers"] = tuple(parse_integers(chosen["layers"]))
    scales, matrices = _range(what["scales"]), LowRankSpec(**chosen)
    adapter = AdapterSpec(matrices) if scales is None else AdapterSpec(matrices, scales)
    trajectories = TrajectorySpec(**{name: value for name, value in states.items() if value is not None})
    return Teaching(
        model=what["model"] or o.DEFAULT_MODEL,
        rule=what["guidance"] or o.DEFAULT_RULE,
        reading={name: value for name, value in reading.items() if value is not None},
        schedule=what["schedule"],
        prompts=None if what["prompts"] is None else str(what["prompts"]),
        negative_prompt=what["negative_prompt"],
        height=what["height"],
        width=what["width"],
        adapter=adapter,
        trajectories=trajectories,
    )


def _range(text: str | None) -> tuple[float, float] | None:
    """``LOW,HIGH`` as numbers."""
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"scales are LOW,HIGH, got {text!r}") from None
    return low, high


def _refuse(options: dict[str, Any], out: Path) -> None:
    """Raise ``ValueError`` for an option whose value the run has."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--resume goes on with the run in {out}: leave {value!r} ({name.replace('_', ' ')}) out")
