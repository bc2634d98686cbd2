"""``segue train``, ``segue export``, ``segue encode`` and ``segue herbarium``.

Modules that import torch are imported inside the commands, so that ``segue --help`` does not wait for them.
"""

from pathlib import Path
from typing import Annotated

import typer

from .data.encode_command import encode
from .distill.command import distill
from .train_command import train


def register(app: typer.Typer) -> None:
    """Add the commands of this folder to ``app``."""
    app.command()(train)
    app.command()(distill)
    app.command()(export)
    app.command()(herbarium)
    app.command()(encode)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    out: Annotated[Path, typer.Option(help="File to write; the folder in the layout of diffusers.")],
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32.")] = "float16",
    step: Annotated[int | None, typer.Option(help="Weights that the run kept of this step; default the latest.")] = None,
    parent: Annotated[Path | None, typer.Option(help="The model's file that this one is made for.")] = None,
    layout: Annotated[
        str, typer.Option(help="segue; official (a torch file for the code of DiT, SiT and REPA) or diffusers (a folder).")
    ] = "segue",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write the averaged weights of a training run as one small file, or as other code reads them.

    [bold]Example[/bold]

    segue export runs/herbarium --out herbarium.safetensors
    """
    from segue.engine.files import refuse_existing

    from .export import export_run

    if not force:
        refuse_existing(out)
    model = export_run(run, out, dtype, step, parent, layout)
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{out}: {model.spec.name}, {count / 1e6:.2f} M parameters, {_bytes(out) / 1e6:.1f} MB")


def _bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in (out.iterdir() if out.is_dir() else (out,)))


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
