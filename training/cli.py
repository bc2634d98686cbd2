"""``segue train``, ``segue export`` and ``segue herbarium``.

Modules that import torch are imported inside the commands, so that ``segue --help`` does not wait for them.
"""

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this folder to ``app``."""
    app.command()(train)
    app.command()(export)
    app.command()(herbarium)


def train(
    out: Annotated[Path, typer.Option(help="Folder for weights, state and log.")],
    recipe: Annotated[
        str | None, typer.Option(help="herbarium (default), herbarium-weak, herbarium-classifier or herbarium-judge.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="End after this much training time; 0: no limit.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the network, the leaves and the noise.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default cuda if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (autocast) or float32.")] = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile the network; needs a C++ compiler.")] = None,
    graph: Annotated[bool | None, typer.Option(help="On a CUDA device, capture the step as a graph.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that draw leaves.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    snapshot_every: Annotated[int | None, typer.Option(help="Steps between weights that are kept; 0: none.")] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--fresh", help="Continue the run in the folder / replace it.")
    ] = None,
) -> None:
    """Train a network on the herbarium.

    Options that are not given are the recipe's, or the run's own with --resume.
    Ctrl-C finishes the step in hand, saves, and exits with 130.

    [bold]Example[/bold]

    segue train --recipe herbarium --out runs/herbarium --compile
    """
    from dataclasses import asdict

    from .recipes import get_recipe
    from .run_folder import RunFolder
    from .settings import TrainSettings

    if resume:
        record = RunFolder(out).existing()
        chosen, values = get_recipe(recipe or record["spec"].get("name")), record["settings"]
    else:
        chosen = get_recipe(recipe or "herbarium")
        values = asdict(chosen.settings)
    given: dict[str, Any] = {
        "steps": steps,
        "minutes": minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "device": device or _default_device(),
        "dtype": dtype,
        "compile": compile,
        "graph": graph,
        "workers": workers,
        "checkpoint_every": checkpoint_every,
        "snapshot_every": snapshot_every,
    }
    settings = TrainSettings.from_dict(values | {name: value for name, value in given.items() if value is not None})
    start = {None: "new", True: "resume", False: "fresh"}[resume]
    raise typer.Exit(_run(chosen.spec, settings, out, start))


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _run(spec, settings, out: Path, start) -> int:
    """Train with a display until the end or a signal; returns the exit code."""
    from rich.console import Console

    from .interrupt import StopRequest
    from .loop import Trainer
    from .progress import TrainingDisplay

    console = Console(stderr=True)
    trainer = Trainer(spec, settings, out, start)
    if start == "resume":
        console.print(f"resuming {spec.name} after step {trainer.step}", soft_wrap=True)
    with StopRequest() as stop, TrainingDisplay(trainer, console) as display:

        def after_step(trainer, losses) -> bool:
            display.show(trainer, losses)
            return stop.signal is None

        finished = trainer.run(after_step)
    end = "done" if finished else "stopped; continue with --resume"
    console.print(f"{end}: step {trainer.step}, {trainer.seconds:.0f} s of training, weights in {out}", soft_wrap=True)
    return 0 if finished else stop.exit_code


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    out: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32.")] = "float16",
    step: Annotated[int | None, typer.Option(help="Weights that the run kept of this step; default the latest.")] = None,
    parent: Annotated[Path | None, typer.Option(help="The model's file that this one is made for.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write the averaged weights of a training run as one small file.

    [bold]Example[/bold]

    segue export runs/herbarium --out herbarium.safetensors
    """
    from segue.engine.files import refuse_existing

    from .export import export_run

    if not force:
        refuse_existing(out)
    model = export_run(run, out, dtype, step, parent)
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{out}: {model.spec.name}, {count / 1e6:.2f} M parameters, {out.stat().st_size / 1e6:.1f} MB")


def herbarium(
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    species: Annotated[str, typer.Option(help="all, numbers, ranges, names or genera, comma-separated.")] = "all",
    per_species: Annotated[int, typer.Option(help="Leaves of each species.")] = 8,
    seed: Annotated[int, typer.Option(help="Another seed, other leaves.")] = 0,
    zoom: Annotated[int | None, typer.Option(min=1, help="Enlargement; default to about 96 pixels.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Draw real leaves, one labelled row per species.

    [bold]Example[/bold]

    segue herbarium --out leaves.png --species Acerites,7 --per-species 12
    """
    from segue.engine.files import NewFiles, check_writable, refuse_existing
    from segue.engine.images import save_png
    from segue.engine.labels import parse_labels

    from .data.sheet import species_sheet
    from .data.species import NUM_SPECIES, SPECIES

    labels = parse_labels(species, NUM_SPECIES, SPECIES, "the herbarium")
    check_writable(out, folder=False)
    if not force:
        refuse_existing(out)
    sheet = species_sheet(labels, per_species, seed, zoom)
    record = {"species": labels, "per_species": per_species, "seed": seed, "zoom": zoom}
    text = f"herbarium, species {species}, seed {seed}"
    out = NewFiles(force).write(out, lambda path: save_png(sheet, path, text, {"herbarium": record}))
    typer.echo(f"{out}: {len(labels)} species, {per_species} leaves each")
