"""``segue reproduce``: what the commands accept.

Modules that import torch are imported inside the commands, so that ``segue --help`` does not wait for them.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from segue.engine.cli import options as o

from ..quality.commands import (
    DTYPE,
    JUDGED,
    JUDGED_FROM,
    SEARCHED,
    BatchOption,
    DtypeOption,
    JudgesOption,
    LimitOption,
    RealCountOption,
    RealOption,
    SolverOption,
    StepsOption,
)

ROWS, SCORES, RUNS = Path("out/reproduction.jsonl"), Path("out/quality.jsonl"), Path("runs/reproduction")

reproduce = typer.Typer(no_args_is_help=True, help="Check the claims of the paper on guidance here, as tables and figures.")

IntoOption = Annotated[
    Path | None,
    typer.Option("--into", help="Folder of pages whose marked blocks are replaced, docs/reproduction.  Default: tables."),
]
RowsOption = Annotated[Path, typer.Option("--out", "-o", help="JSON-lines file (.jsonl) that rows are added to.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder for networks that are trained.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="What the model was trained on, as in segue train: its pictures are the real ones.")
]
ImageSizeOption = Annotated[int | None, typer.Option("--image-size", help="As in segue train, of --data.")]
SamplesOption = Annotated[int, typer.Option("--samples", help="Samples of each rule; a page shows 960 and more.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the first sample.")]
ScoresOption = Annotated[Path, typer.Option("--out", "-o", help="JSON-lines file (.jsonl) of scores that rows are added to.")]


def register(app: typer.Typer) -> None:
    """Add the command group to ``app``."""
    app.add_typer(reproduce, name="reproduce")


@reproduce.command()
def mixture(
    points: Annotated[int, typer.Option("--samples", help="Points of each rule.")] = 2400,
    seeds: Annotated[int, typer.Option(help="Trained pairs of networks for each setting.")] = 3,
    out: RowsOption = ROWS,
    runs: RunsOption = RUNS,
    into: IntoOption = None,
) -> None:
    """Figures 2 and 3: what CFG, a weak network and SGG do to leaves in the plane, by exact and by trained networks.

    [bold]Example[/bold]

    segue reproduce mixture --into docs/reproduction
    """
    from .mixture import reproduce_mixture

    reproduce_mixture(points, seeds, out, runs, into)


@reproduce.command()
def inference(
    model: o.ModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    weak: o.WeakOption = None,
    device: o.DeviceOption = None,
    dtype: DtypeOption = None,
    data: DataOption = None,
    image_size: ImageSizeOption = None,
    real: RealOption = None,
    real_samples: RealCountOption = None,
    extractor: Annotated[
        str | None, typer.Option(help="Whose scores choose numbers, as --judge and none of those; see segue tune-scales.")
    ] = None,
    judge: JudgesOption = None,
    samples: SamplesOption = JUDGED,
    seed: SeedOption = JUDGED_FROM,
    search_samples: Annotated[int, typer.Option(help="Samples of each candidate of a search, from seed 0.")] = SEARCHED,
    steps: StepsOption = None,
    solver: SolverOption = None,
    batch: BatchOption = None,
    switch: Annotated[list[float] | None, typer.Option(help="A noise level where SGG changes over; repeat it.")] = None,
    out: ScoresOption = SCORES,
    limit_minutes: LimitOption = None,
    page: Annotated[str, typer.Option(help="Name of the page in --into: one for each model.")] = "inference",
    into: IntoOption = None,
) -> None:
    """Every rule at its own best numbers, CFG at the effective scale of each beside it, and SGG over its switch.

    Numbers that the model has not are searched.  Rows go into one file; the same command goes on where it stopped.

    [bold]Examples[/bold]

    segue reproduce inference --limit-minutes 60 --into docs/reproduction

    segue reproduce inference --model fashion.safetensors --data fashion --judge fashion-classifier.safetensors --page fashion
    """
    from ..quality.score_command import Panel
    from ..quality.source_samples import source_samples
    from ..quality.tune_command import Budget, Roles
    from .inference import reproduce_inference
    from .rule_list import SWITCHES

    check_page(page)
    common = stated(steps=steps, solver=solver, batch=batch)
    search = {"samples": search_samples, "first_seed": 0} | common
    budget = Budget(search, {"samples": samples, "first_seed": seed} | common)
    source = o.Source(model, family=family, heads=heads, weak=weak, device=device, dtype=dtype or DTYPE)
    refuse_both(data, real)
    found = None if data is None else source_samples(data, image_size, real_samples, print)
    asked: dict[str, object] = {
        "model": source.name,
        "family": family,
        "weak": weak,
        "dtype": dtype,
        "samples": samples,
        "seed": seed,
    }
    command = command_of("score", asked | {"judge": judge, "real": real} | common | {"out": out})
    roles, levels = Roles(extractor, Panel(judge, real, real_samples)), tuple(switch) if switch else SWITCHES
    exit_with(reproduce_inference(source, roles, found, budget, levels, out, limit_minutes, into, page, command))


@reproduce.command()
def rules(
    model: o.ModelOption = None,
    family: o.FamilyOption = None,
    weak: o.WeakOption = None,
    device: o.DeviceOption = None,
    dtype: DtypeOption = None,
    guidance: Annotated[
        list[str] | None, typer.Option("--guidance", "-g", help="A name that is swept, or a rule; repeat it.  Default: all.")
    ] = None,
    factor: Annotated[
        list[float] | None, typer.Option(help="A factor of a rule's numbers; repeat it.  Default: 1, 0.5 and 2.")
    ] = None,
    data: DataOption = None,
    image_size: ImageSizeOption = None,
    real: RealOption = None,
    judge: JudgesOption = None,
    samples: SamplesOption = JUDGED,
    seed: SeedOption = JUDGED_FROM,
    steps: StepsOption = None,
    solver: SolverOption = None,
    batch: BatchOption = None,
    out: ScoresOption = SCORES,
    limit_minutes: LimitOption = None,
    beside_cfg: Annotated[
        bool, typer.Option("--beside-cfg", help="Also CFG at the effective scale of every rule, at its best strength.")
    ] = False,
    page: Annotated[str, typer.Option(help="Name of the page in --into: one for each model.")] = "rules",
    into: IntoOption = None,
) -> None:
    """Every named rule: evaluations, cost, time, effective scale and scores, the main ones at several strengths.

    [bold]Example[/bold]

    segue reproduce rules --limit-minutes 60 --into docs/reproduction
    """
    from .rule_sweep import FACTORS
    from .rules import Sweep, reproduce_rules

    check_page(page)
    source = o.Source(model, family=family, weak=weak, device=device, dtype=dtype or DTYPE)
    drawing = stated(samples=samples, first_seed=seed, steps=steps, solver=solver, batch=batch)
    judged = judged_by(judge, real, data, image_size)
    asked: dict[str, object] = {
        "model": source.name,
        "family": family,
        "weak": weak,
        "dtype": dtype,
        "judge": judge,
        "real": real,
        "data": data,
    }
    asked |= {"image-size": image_size, "samples": samples, "seed": seed, "steps": steps, "solver": solver, "batch": batch}
    command = command_of("reproduce rules", asked | {"out": out})
    sweep = Sweep(guidance, tuple(factor or FACTORS), beside_cfg)
    exit_with(reproduce_rules(source, sweep, drawing, judged, out, limit_minutes, into, page, command))


@reproduce.command()
def training(
    start: Annotated[str, typer.Option("--from", help="The checkpoint that all runs start from.")] = "herbarium",
    data: Annotated[str, typer.Option(help="What they are trained on, as in segue train.")] = "herbarium",
    image_size: ImageSizeOption = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="none, uncond, layer-skip, branch, separate, segmented; repeat it.  Default: all."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of none and of segmented; the others have one.")] = 3,
    train_steps: Annotated[int, typer.Option(help="Optimiser steps of every run.")] = 160,
    train_batch: Annotated[int, typer.Option("--batch-size", help="Images of a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-4,
    ema: Annotated[float, typer.Option(help="Decay of the average of the weights.")] = 0.99,
    train_dtype: Annotated[str, typer.Option(help="Of training: bfloat16 (autocast) or float32.")] = "float32",
    workers: Annotated[int, typer.Option(help="Processes that make batches.")] = 0,
    guidance: Annotated[
        list[str] | None, typer.Option("--guidance", "-g", help="Also sampled by these rules; default cfg.  Repeat it.")
    ] = None,
    device: o.DeviceOption = None,
    judge: JudgesOption = None,
    samples: SamplesOption = JUDGED,
    seed: SeedOption = JUDGED_FROM,
    steps: StepsOption = None,
    batch: BatchOption = None,
    costs: Annotated[
        Path | None, typer.Option(help="Rows of segue bench training, whose costs stand beside those of the runs.")
    ] = None,
    runs: RunsOption = RUNS,
    out: ScoresOption = SCORES,
    limit_minutes: LimitOption = None,
    into: IntoOption = None,
) -> None:
    """Every training objective from one checkpoint, equal in steps, sampled with and without guidance.

    Three seeds of none and of segmented, one of the others.  A run that was killed goes on from its last checkpoint.

    [bold]Example[/bold]

    segue reproduce training --train-steps 160 --limit-minutes 120 --into docs/reproduction
    """
    from segue.engine.device import resolve_device
    from segue.training.data.open_source import open_source

    from ..quality.source_samples import source_samples
    from .inference import judges_of
    from .objective_runs import runs_of
    from .training import GUIDED, ScoreOptions, reproduce_training
    from .training_page import WEAK

    drawing = stated(samples=samples, first_seed=seed, steps=steps, batch=batch)
    found = open_source(data, size=image_size)
    scores = ScoreOptions(
        drawing, lambda engine: (judges_of(judge, engine), source_samples(data, image_size)), guidance or GUIDED, costs
    )
    settings = {
        "steps": train_steps,
        "batch_size": train_batch,
        "learning_rate": learning_rate,
        "warmup": min(50, train_steps),
        "ema": ema,
        "dtype": train_dtype,
        "device": str(resolve_device(device)),
        "workers": workers,
        "checkpoint_every": 50,
    }
    wanted, folder = runs_of(objective or WEAK, seeds), runs / "training"
    exit_with(reproduce_training(start, found, wanted, settings, scores, out, folder, limit_minutes, into))


@reproduce.command()
def distilled(
    model: o.ModelOption = None,
    adapter: Annotated[str, typer.Option(help="Guidance in the weights: a name, a file or a folder of segue distill.")] = "sgg",
    guidance: Annotated[
        str | None, typer.Option("--guidance", "-g", help="The exact rule.  Default: what the adapter says that it stands for.")
    ] = None,
    device: o.DeviceOption = None,
    dtype: DtypeOption = None,
    data: DataOption = None,
    image_size: ImageSizeOption = None,
    real: RealOption = None,
    judge: JudgesOption = None,
    samples: SamplesOption = JUDGED,
    seed: SeedOption = JUDGED_FROM,
    distance_samples: Annotated[int, typer.Option(help="Finished samples whose distances are measured.")] = JUDGED,
    steps: StepsOption = None,
    solver: SolverOption = None,
    batch: BatchOption = None,
    out: ScoresOption = SCORES,
    limit_minutes: LimitOption = None,
    into: IntoOption = None,
) -> None:
    """An adapter at the cost of unguided sampling beside the exact rule: cost, scores, distance of finished samples.

    [bold]Example[/bold]

    segue reproduce distilled --adapter sgg --into docs/reproduction
    """
    from .distilled import HELD_OUT, reproduce_distilled

    common = stated(steps=steps, solver=solver, batch=batch)
    scored, far = {"samples": samples, "first_seed": seed}, {"samples": distance_samples, "first_seed": HELD_OUT}
    source = o.Source(model, adapter=adapter, device=device, dtype=dtype or DTYPE)

    judged = judged_by(judge, real, data, image_size)
    exit_with(reproduce_distilled(source, guidance, scored | common, far | common, judged, out, limit_minutes, into))


@reproduce.command()
def reused(
    model: o.ModelOption = None,
    weak: o.WeakOption = None,
    device: o.DeviceOption = None,
    dtype: DtypeOption = None,
    guidance: Annotated[
        list[str] | None, typer.Option("--guidance", "-g", help="An exact rule; repeat it.  Default: sgg, cfg, slg and ag.")
    ] = None,
    cost: Annotated[list[float] | None, typer.Option(help="A wanted cost; repeat it.  Default: 1.22 and 1.15.")] = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    samples: Annotated[int, typer.Option(help="Samples that placements are tried on.")] = 48,
    judge_samples: Annotated[int, typer.Option(help="Samples of other seeds, for errors; a page shows 96 and more.")] = 96,
    tries: Annotated[int, typer.Option(help="Placements that are tried for each cost.")] = 12,
    batch: BatchOption = None,
    out: RowsOption = ROWS,
    limit_minutes: LimitOption = None,
    into: IntoOption = None,
) -> None:
    """Directions that are held, extrapolated or computed at searched calls: cost, and error of finished samples.

    [bold]Example[/bold]

    segue reproduce reused -g sgg -g cfg --into docs/reproduction
    """
    from ..calibration.calibrate import Budget
    from ..calibration.commands import JUDGED_FROM as HELD_OUT
    from ..quality.draw import Draw
    from .reused import reproduce_reused

    source = o.Source(model, device=device, dtype=dtype or DTYPE, weak=weak)
    budget = Budget(Draw(samples, 0, batch or 24), Draw(judge_samples, HELD_OUT, batch or 24), tries)
    rules, costs = guidance or ["sgg", "cfg", "slg", "ag"], cost or [1.22, 1.15]
    run = o.RunOptions(steps, solver)
    exit_with(reproduce_reused(source, rules, costs, run, budget, out, limit_minutes, into))


@reproduce.command()
def sd3(
    model: Annotated[str, typer.Option(help="Folder or hub id of an SD3 or SD3.5 pipeline.")],
    prompts: Annotated[Path, typer.Option(help="Text file, a prompt a line.")],
    count: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    guidance: Annotated[
        list[str] | None, typer.Option("--guidance", "-g", help="A rule; repeat it.  Default: none, cfg, slg, s2 and sgg.")
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="module:function of images and prompts, which gives a number for each image; repeat it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first prompt; it counts up.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps of the pipeline's scheduler.")] = 28,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    batch: Annotated[int, typer.Option(help="Pictures drawn at once.")] = 1,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    t5: o.T5Option = None,
    variant: o.VariantOption = None,
    images: Annotated[Path, typer.Option(help="Folder for the pictures.")] = RUNS / "sd3",
    out: RowsOption = ROWS,
    limit_minutes: LimitOption = None,
    into: IntoOption = None,
) -> None:
    """Rules on the same prompts and seeds by your own weights, scored by callables, published values beside.

    Pictures and scores that are there are neither drawn nor scored again.

    [bold]Example[/bold]

    segue reproduce sd3 --model sd3.5-medium --prompts coco-1k.txt --scorer my_scores:hps --scorer my_scores:aesthetic
    """
    from .sd3 import reproduce_sd3

    source = o.Source(model, device=device, dtype=dtype, t5=t5, variant=variant)
    drawing = {"steps": steps, "height": height, "width": width}
    code = reproduce_sd3(source, prompts, count, guidance, scorer or (), seed, batch, drawing, images, out, limit_minutes, into)
    exit_with(code)


@reproduce.command()
def efdit(
    samples: SamplesOption = JUDGED,
    seed: SeedOption = 200_000,
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 28,
    guidance: Annotated[str, typer.Option("--guidance", "-g", help="The rule that all but tiers is drawn by.")] = "sgg-exit",
    tuning: Annotated[int, typer.Option(help="Steps of fine-tuning, with ProbSparse attention and with all of it.")] = 300,
    training: Annotated[int, typer.Option(help="Steps of each network with tiered or flat labels.")] = 1_000,
    seeds: Annotated[int, typer.Option(help="Pairs of such networks.")] = 3,
    part: Annotated[
        list[str] | None, typer.Option(help="upscaling, attention, time or tiers; repeat it.  Default: all.")
    ] = None,
    out: ScoresOption = SCORES,
    runs: RunsOption = RUNS,
    limit_minutes: LimitOption = None,
    into: IntoOption = None,
) -> None:
    """Fine-grained classes on the herbarium: larger pictures, ProbSparse attention, tiered labels, each beside the plain way.

    [bold]Example[/bold]

    segue reproduce efdit --part upscaling --part time
    """
    from .efdit import PARTS, EFDiTOptions, reproduce_efdit

    options = EFDiTOptions(samples, seed, steps, guidance, tuning, training, seeds, tuple(part or PARTS))
    exit_with(reproduce_efdit(options, out, runs, limit_minutes, into))


def stated(**options: object) -> dict:
    """Those that the user named; the others have the defaults of who takes them."""
    return {name: value for name, value in options.items() if value is not None}


def judged_by(judge: list[str] | None, real: str | None, data: str | None, size: int | None) -> Callable:
    """What gives the judges and the real samples of an engine: those named, or the default ones of its model."""
    from ..quality.score_command import Panel
    from ..quality.source_samples import source_samples
    from .inference import judges_of

    refuse_both(data, real)

    def judged(engine):
        found = Panel(judge, real).samples(engine) if data is None else source_samples(data, size)
        return judges_of(judge, engine), found

    return judged


def refuse_both(data: str | None, real: str | None) -> None:
    """Raise ``ValueError`` where real samples are named twice."""
    if data is not None and real is not None:
        raise ValueError(f"--data {data} brings real samples: leave --real {real} out")


def check_page(page: str) -> None:
    """Raise ``ValueError`` for what is no name of a page."""
    if not page.replace("-", "").isalnum():
        raise ValueError(f"the name of a page is of letters, digits and hyphens, got {page!r}")


def command_of(command: str, options: dict[str, object]) -> str:
    """A command of this program with the options that were named, those of several values as often as they have."""
    words = ["segue", *command.split()]
    for name, value in options.items():
        every = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        words += [word for each in every for word in (f"--{name}", str(each))]
    return shlex.join(words)


def exit_with(code: int) -> None:
    """End with a code other than 0 where something was left for another run."""
    if code:
        raise typer.Exit(code)
