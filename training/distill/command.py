"""``segue distill``: guidance of a model into an adapter, by which one evaluation a step does what the rule does.

Modules that import torch are imported inside the command, so that ``segue --help`` does not wait for them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.engine.cli import options as o

from .. import run_options as r
from ..run_options import LENGTH, default_device, given, option

if TYPE_CHECKING:
    from ..run_folder import Start

ADAPTER, STATES = "Adapter", "States it is trained at"


def distill(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapter, state and log; for an SD3 the LoRA's.")],
    model: Annotated[
        str | None, typer.Argument(help="As --model of segue sample: a bundled name, a checkpoint, an SD3 pipeline's folder.")
    ] = None,
    guidance: Annotated[str | None, option("--guidance", "-g", panel="Guidance", help="The rule; default sgg.")] = None,
    resume: r.ResumeOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    t5: o.T5Option = None,
    weak: o.WeakOption = None,
    prompts: Annotated[
        Path | None, option("--prompts", panel="Prompts", help="Text file, a prompt a line, for an SD3.")
    ] = None,
    negative_prompt: Annotated[str | None, option("--negative-prompt", panel="Prompts", help="Of all prompts.")] = None,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    rank: Annotated[int | None, option("--rank", panel=ADAPTER, help="Of the adapter; default 12.")] = None,
    alpha: Annotated[
        float | None, option("--alpha", panel=ADAPTER, help="The product is times alpha / rank; default rank.")
    ] = None,
    targets: Annotated[
        str | None,
        option("--targets", panel=ADAPTER, help="Of qkv, proj, fc1, fc2, adaLN, final; default all but final."),
    ] = None,
    layers: Annotated[
        str | None, option("--layers", panel=ADAPTER, help="Blocks that are adapted: 0-5,9; default all.")
    ] = None,
    scales: Annotated[
        str | None,
        option("--scales", panel=ADAPTER, help="LOW,HIGH: makes the strength an input; 0 is unguided, 1 the rule."),
    ] = None,
    sampling_steps: Annotated[
        int | None, option("--sampling-steps", panel=STATES, help="Steps of a trajectory; default 28.")
    ] = None,
    solver: o.SolverOption = None,
    schedule: o.ScheduleOption = None,
    own: Annotated[
        float | None, option("--own", panel=STATES, help="Share of trajectories that are the student's own.")
    ] = None,
    levels: Annotated[int | None, option("--levels", panel=STATES, help="States used of each trajectory.")] = None,
    level_weights: Annotated[
        str | None,
        option("--level-weights", panel=STATES, help="uniform; steps: by the step squared; effect: that on the end, measured."),
    ] = None,
    steps: r.StepsOption = None,
    minutes: r.MinutesOption = None,
    batch_size: Annotated[int | None, option("--batch-size", panel=LENGTH, help="Trajectories a step.")] = None,
    micro_batches: r.MicroBatchesOption = None,
    learning_rate: r.LearningRateOption = None,
    warmup: r.WarmupOption = None,
    ema: r.EMAOption = None,
    seed: r.SeedOption = None,
    device: r.DeviceOption = None,
    dtype: r.DtypeOption = None,
    checkpoint_every: r.CheckpointOption = None,
    snapshot_every: r.SnapshotOption = None,
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

    settings = given(
        steps=steps,
        minutes=minutes,
        batch_size=batch_size,
        micro_batches=micro_batches,
        learning_rate=learning_rate,
        warmup=warmup,
        ema=ema,
        seed=seed,
        device=device or default_device(),
        dtype=dtype,
        checkpoint_every=checkpoint_every,
        snapshot_every=snapshot_every,
    )
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
    trainer = make_trainer(teaching, TrainSettings.from_dict(values | settings), out, start)
    if resume and trainer.processes.first:
        typer.echo(f"resuming {trainer.spec.name} after step {trainer.step}", err=True)
    code = show_run(trainer)
    if json and trainer.processes.first:
        rows = trainer.folder.log_rows()
        summary = {"folder": str(out), "step": trainer.step, "seconds": round(trainer.seconds, 1), "finished": code == 0}
        print(text.dumps(summary | {"spec": trainer.spec.to_dict(), "log": rows[-1] if rows else None}), flush=True)
    if code:
        raise typer.Exit(code)


def _defaults(settings: Any) -> dict[str, Any]:
    """The usual settings of a distillation, one part of a batch for each process."""
    from dataclasses import asdict

    from ..processes import launched

    return asdict(settings) | {"micro_batches": launched()}


def _teaching(what: dict, reading: dict, low_rank: dict, states: dict) -> Any:
    """The options as what is distilled; raises ``ValueError`` for any that cannot be."""
    from segue.engine.rules.integers import parse_integers
    from segue.models.adapted import AdapterSpec
    from segue.models.low_rank import LowRankSpec

    from .assembly import Teaching
    from .spec import TrajectorySpec

    chosen = given(**low_rank)
    if "targets" in chosen:
        chosen["targets"] = tuple(target.strip() for target in chosen["targets"].split(","))
    if "layers" in chosen:
        chosen["layers"] = tuple(parse_integers(chosen["layers"]))
    scales, matrices = _range(what["scales"]), LowRankSpec(**chosen)
    adapter = AdapterSpec(matrices) if scales is None else AdapterSpec(matrices, scales)
    trajectories = TrajectorySpec(**given(**states))
    return Teaching(
        model=what["model"] or o.DEFAULT_MODEL,
        rule=what["guidance"] or o.DEFAULT_RULE,
        reading=given(**reading),
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
