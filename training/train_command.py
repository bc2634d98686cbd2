"""``segue train``: a recipe's network, or one of a size of the user's, or a checkpoint, on any source of samples."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .showing import show_run

if TYPE_CHECKING:
    from .data.source import Source
    from .loop import Trainer
    from .run_folder import Start

NETWORK, OBJECTIVE, LENGTH, MACHINE = "Network and data", "Objective", "Length and optimiser", "Machine"


def train(
    out: Annotated[Path, typer.Option(help="Folder for weights, state and log.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="herbarium (default) or herbarium-64, -weak, -classifier, -judge."),
    ] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--fresh", help="Continue the run in the folder / replace it.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="What to train on; default the herbarium.", rich_help_panel=NETWORK)] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Cut images to squares of so many pixels.", rich_help_panel=NETWORK)
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip", help="Mirror every second image by chance.", rich_help_panel=NETWORK)
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option(help="Superclasses: levels of folders above the class, or a column; 0: none.", rich_help_panel=NETWORK),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="A checkpoint or bundled model that the weights start from.", rich_help_panel=NETWORK),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Of an official checkpoint: dit, sit or repa.", rich_help_panel=NETWORK)
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Attention heads of a checkpoint of no published width.", rich_help_panel=NETWORK)
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="A published size and a patch, as in S/2; default the recipe's.", rich_help_panel=NETWORK)
    ] = None,
    exit_layer: Annotated[int | None, typer.Option(help="Blocks before an early-exit head.", rich_help_panel=NETWORK)] = None,
    trained: Annotated[
        str | None,
        typer.Option(
            "--train",
            help="What is trained: all, or of labels, biases, norms, times, modulation, attention, mlp, heads.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the network is called.", rich_help_panel=NETWORK)] = None,
    weak: Annotated[
        str | None,
        typer.Option(
            "--objective",
            help="Weak signal: none, uncond, layer-skip, branch, separate or segmented (SGG).",
            rich_help_panel=OBJECTIVE,
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(help="W of the extrapolation; default as published. Scale 1 / (1 - W).", rich_help_panel=OBJECTIVE),
    ] = None,
    power: Annotated[
        float | None, typer.Option(help="W grows with progress to this power; 0: it does not.", rich_help_panel=OBJECTIVE)
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Noise level between the two signals of segmented.", rich_help_panel=OBJECTIVE)
    ] = None,
    high: Annotated[
        float | None, typer.Option(help="Noise level above which no weak signal acts.", rich_help_panel=OBJECTIVE)
    ] = None,
    skip_layers: Annotated[str | None, typer.Option(help="Blocks of layer-skip, as in 7,8.", rich_help_panel=OBJECTIVE)] = None,
    mode: Annotated[
        str | None, typer.Option(help="paper, or released: as the published code does.", rich_help_panel=OBJECTIVE)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="extrapolated, or inverse: of guidance that is built in.", rich_help_panel=OBJECTIVE)
    ] = None,
    path: Annotated[str | None, typer.Option(help="linear or cosine.", rich_help_panel=OBJECTIVE)] = None,
    time: Annotated[str | None, typer.Option(help="log-normal or uniform.", rich_help_panel=OBJECTIVE)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.", rich_help_panel=LENGTH)] = None,
    minutes: Annotated[
        float | None, typer.Option(help="End after this much training time; 0: no limit.", rich_help_panel=LENGTH)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, of all processes together.", rich_help_panel=LENGTH)
    ] = None,
    micro_batches: Annotated[
        int | None,
        typer.Option(help="Parts of a batch, whose gradients are added up; default one a process.", rich_help_panel=LENGTH),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=LENGTH)] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps up to the peak.", rich_help_panel=LENGTH)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.", rich_help_panel=LENGTH)] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the average of the weights.", rich_help_panel=LENGTH)] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.", rich_help_panel=LENGTH)] = None,
    exit_weight: Annotated[float | None, typer.Option(help="Of the loss of early-exit heads.", rich_help_panel=LENGTH)] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Share of samples trained without their label.", rich_help_panel=LENGTH)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the network, the data and the noise.", rich_help_panel=LENGTH)] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default cuda if there is one.", rich_help_panel=MACHINE)
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (autocast) or float32.", rich_help_panel=MACHINE)] = None,
    compile: Annotated[
        bool | None, typer.Option(help="torch.compile the network; needs a C++ compiler.", rich_help_panel=MACHINE)
    ] = None,
    graph: Annotated[
        bool | None, typer.Option(help="On a CUDA device, capture the step as a graph.", rich_help_panel=MACHINE)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make batches.", rich_help_panel=MACHINE)] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    snapshot_every: Annotated[int | None, typer.Option(help="Steps between weights that are kept; 0: none.")] = None,
    preview_every: Annotated[int | None, typer.Option(help="Steps between sheets of pictures; 0: none.")] = None,
    vae: Annotated[Path | None, typer.Option(help="VAE that decodes the previews of latents.")] = None,
) -> None:
    """Train a network: on the herbarium, on pictures in folders, on latents, on IDX files.

    Options that are not given are the recipe's, or the run's own with --resume.
    Ctrl-C finishes the step in hand, saves, and exits with 130.
    Several devices: accelerate launch -m segue train ...

    [bold]Examples[/bold]

    segue train --recipe herbarium --out runs/herbarium --compile

    segue train --data photos --size S/2 --out runs/photos

    segue train --data latents --from SiT-XL-2.pt --family sit --train labels,biases,norms --out runs/tuned
    """
    given: dict[str, Any] = {
        "steps": steps,
        "minutes": minutes,
        "batch_size": batch_size,
        "micro_batches": micro_batches,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "ema": ema,
        "clip": clip,
        "exit_weight": exit_weight,
        "trained": trained,
        "seed": seed,
        "device": device or _default_device(),
        "dtype": dtype,
        "compile": compile,
        "graph": graph,
        "workers": workers,
        "checkpoint_every": checkpoint_every,
        "snapshot_every": snapshot_every,
        "preview_every": preview_every,
    }
    options = {
        "data": data,
        "image_size": image_size,
        "flip": flip,
        "tier": tier,
        "from": start,
        "family": family,
        "heads": heads,
        "size": size,
        "exit_layer": exit_layer,
        "name": name,
    }
    chosen = {
        "weak": weak,
        "weight": weight,
        "power": power,
        "tau": tau,
        "high": high,
        "layers": None if skip_layers is None else _layers(skip_layers),
        "mode": mode,
        "target": target,
        "path": path,
        "time": time,
    }
    objective = {key: value for key, value in chosen.items() if value is not None}
    given["objective"] = objective or None
    network = {key: value for key, value in options.items() if value is not None}
    settings = {key: value for key, value in given.items() if value is not None}
    if resume:
        trainer = _resumed(out, recipe, network, settings, dropout, vae)
    else:
        trainer = _begun(out, recipe, network, settings, dropout, vae, "new" if resume is None else "fresh")
    raise typer.Exit(show_run(trainer, vae))


def _layers(text: str) -> tuple[int, ...]:
    """Blocks as in ``7,8``; ``ValueError`` for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--skip-layers takes whole numbers as in 7,8, got {text!r}") from None


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _begun(
    out: Path,
    recipe: str | None,
    network: dict[str, Any],
    settings: dict[str, Any],
    dropout: float | None,
    vae: Path | None,
    start: "Start",
) -> "Trainer":
    """The trainer of a new run: the recipe's network, fitted to the data, of another size, or a checkpoint's."""
    from segue.models.spec import SiTSpec

    from .loop import Trainer
    from .preview import check_previews
    from .recipes import get_recipe
    from .settings import TrainSettings
    from .specs import fitted, sized

    chosen = get_recipe(recipe or "herbarium")
    for name in ("image_size", "flip", "tier"):
        if name in network and "data" not in network:
            raise ValueError(f"--{name.replace('_', '-')} is of --data, and there is none; got {network[name]!r}")
    source = _source(network) if "data" in network else chosen.source
    _refuse_without_from(network)
    spec = fitted(chosen.spec, source) if "data" in network else chosen.spec
    initial, facts = {}, {"command": network | {"recipe": recipe or "herbarium"}}
    if not isinstance(spec, SiTSpec):
        if found := {"from", "size", "exit_layer"} & network.keys():
            raise ValueError(f"the recipe {recipe} is of a classifier, which takes no {sorted(found)[0]}")
    elif "from" in network:
        begun = _starting(network, source)
        spec, initial, facts = begun.spec, begun.tensors, facts | {"from": begun.facts}
        _say(f"from {begun}")
    else:
        spec = sized(spec, network["size"]) if "size" in network else spec
        spec = replace(spec, exits=(network["exit_layer"],)) if "exit_layer" in network else spec
        spec = replace(spec, path=settings.get("objective", {}).get("path", spec.path))
    spec = replace(spec, name=network.get("name", spec.name))
    values = asdict(chosen.settings)
    if dropout is not None:
        values["dropout"] = values["dropout"] | {"everything": dropout}
    if not spec.parents:
        values["dropout"] = values["dropout"] | {"species": 0.0}
    made = TrainSettings.from_dict(values | {"micro_batches": _processes()} | settings)
    check_previews(spec, made.preview_every, vae)
    if made.objective.weak != "none":
        scale = f"{made.objective.effective_scale:.3g}"
        _say(f"objective {made.objective.weak}, W {made.objective.weight:g}: guidance of scale {scale} is built in")
    return Trainer(spec, made, out, start, source=source, initial=initial, facts=facts)


def _resumed(
    out: Path,
    recipe: str | None,
    network: dict[str, Any],
    settings: dict[str, Any],
    dropout: float | None,
    vae: Path | None,
) -> "Trainer":
    """The trainer of a run that is in its folder; of what it is trained on, where that lies may have changed."""
    from .loop import Trainer
    from .preview import check_previews
    from .recipes import get_recipe
    from .run_folder import RunFolder
    from .settings import TrainSettings
    from .specs import spec_of

    record = RunFolder(out).existing()
    if changed := sorted(network.keys() - {"data"}):
        raise ValueError(f"--resume goes on with the run in {out}: leave out --{changed[0].replace('_', '-')}")
    spec, facts = spec_of(record["spec"], f"the run in {out}"), record.get("facts", {})
    if recipe is not None and recipe != spec.name:
        raise ValueError(f"{out} holds a run of {spec.name}, not of {recipe}")
    command = facts.get("command", {}) | network
    source = _source(command) if "data" in command else get_recipe(command.get("recipe", "herbarium")).source
    values = record["settings"]
    if dropout is not None:
        settings = settings | {"dropout": values["dropout"] | {"everything": dropout}}
    if "objective" in settings:
        settings = settings | {"objective": values["objective"] | settings["objective"]}
    initial = {}
    if "from" in command:
        begun = _starting(command, source)
        initial, facts = begun.tensors, facts | {"from": begun.facts}
    facts = {key: value for key, value in facts.items() if key != "data"} | {"command": command}
    made = TrainSettings.from_dict(values | settings)
    check_previews(spec, made.preview_every, vae)
    trainer = Trainer(spec, made, out, "resume", source=source, initial=initial, facts=facts)
    _say(f"resuming {spec.name} after step {trainer.step}")
    return trainer


def _source(network: dict[str, Any]) -> "Source":
    """What the options name; what was found is said."""
    from .data.open_source import describe, open_source

    source = open_source(
        network["data"], size=network.get("image_size"), flip=network.get("flip", False), tier=network.get("tier")
    )
    for line in describe(source):
        _say(line)
    return source


def _starting(network: dict[str, Any], source: "Source"):
    """The weights of the checkpoint that the options name."""
    from .starting_weights import starting_weights

    if "size" in network:
        raise ValueError(f"--from takes the sizes of its checkpoint: leave out --size, got {network['size']!r}")
    hints = {name: network.get(name) for name in ("family", "heads", "exit_layer")}
    return starting_weights(network["from"], source, **hints)


def _refuse_without_from(network: dict[str, Any]) -> None:
    if "from" in network:
        return
    for name in ("family", "heads"):
        if name in network:
            raise ValueError(f"--{name} is of a checkpoint, and there is no --from; got {network[name]!r}")


def _processes() -> int:
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


def _say(text: str) -> None:
    """A line on stderr, by the first process of a run."""
    import os

    if os.environ.get("RANK", "0") == "0":
        typer.echo(text, err=True)
