"""``segue train``: a recipe's network, or one of a size of the user's, or a checkpoint, on any source of samples."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.engine.rules.integers import parse_integers

from . import run_options as r
from .run_options import LENGTH, MACHINE, NETWORK, OBJECTIVE, default_device, given, option
from .showing import show_run

if TYPE_CHECKING:
    from .data.source import Source
    from .loop import Trainer
    from .run_folder import Start
    from .task import Spec

# settings that no other network has, and the options that set them
OF_VELOCITIES = {
    "from": "--from",
    "size": "--size",
    "exit_layer": "--exit-layer",
    "affine_norms": "--affine-norms",
    "attention": "--attention",
    "exit_weight": "--exit-weight",
    "objective": "--objective",
    "everything": "--dropout",
    "species": "--class-dropout",
}


def train(
    out: Annotated[Path, option("--out", help="Folder for weights, state and log.")],
    recipe: Annotated[
        str | None, option("--recipe", help="herbarium (default) or herbarium-64, -weak, -classifier, -judge, -enhancer.")
    ] = None,
    resume: r.ResumeOption = None,
    data: Annotated[str | None, option("--data", panel=NETWORK, help="What to train on; default the herbarium.")] = None,
    image_size: Annotated[
        int | None, option("--image-size", panel=NETWORK, help="Cut images to squares of so many pixels.")
    ] = None,
    flip: Annotated[bool | None, option("--flip", panel=NETWORK, help="Mirror every second image by chance.")] = None,
    tier: Annotated[
        str | None,
        option(
            "--tier", panel=NETWORK, help="Superclasses: levels of folders above the class, or a column; 1,2: tiers; 0: none."
        ),
    ] = None,
    start: Annotated[
        str | None, option("--from", panel=NETWORK, help="A checkpoint or bundled model that the weights start from.")
    ] = None,
    family: Annotated[
        str | None, option("--family", panel=NETWORK, help="Of an official checkpoint: dit, sit or repa.")
    ] = None,
    heads: Annotated[
        int | None, option("--heads", panel=NETWORK, help="Attention heads of a checkpoint of no published width.")
    ] = None,
    size: Annotated[
        str | None, option("--size", panel=NETWORK, help="A published size and a patch, as in S/2; default the recipe's.")
    ] = None,
    exit_layer: Annotated[int | None, option("--exit-layer", panel=NETWORK, help="Blocks before an early-exit head.")] = None,
    trained: Annotated[
        str | None,
        option(
            "--train",
            panel=NETWORK,
            help="What is trained: all, or of labels, biases, norms, times, modulation, attention, mlp, heads.",
        ),
    ] = None,
    affine_norms: Annotated[
        bool | None,
        option("--affine-norms", panel=NETWORK, help="Give the norms of the blocks weights, folded away in sampling."),
    ] = None,
    attention: Annotated[
        str | None, option("--attention", panel=NETWORK, help="full, or probsparse: how blocks attend, in sampling too.")
    ] = None,
    name: Annotated[str | None, option("--name", panel=NETWORK, help="What the network is called.")] = None,
    weak: Annotated[
        str | None,
        option(
            "--objective", panel=OBJECTIVE, help="Weak signal: none, uncond, layer-skip, branch, separate or segmented (SGG)."
        ),
    ] = None,
    weight: Annotated[
        float | None,
        option("--weight", panel=OBJECTIVE, help="W of the extrapolation; default as published. Scale 1 / (1 - W)."),
    ] = None,
    power: Annotated[
        float | None, option("--power", panel=OBJECTIVE, help="W grows with progress to this power; 0: it does not.")
    ] = None,
    tau: Annotated[
        float | None, option("--tau", panel=OBJECTIVE, help="Noise level between the two signals of segmented.")
    ] = None,
    high: Annotated[
        float | None, option("--high", panel=OBJECTIVE, help="Noise level above which no weak signal acts.")
    ] = None,
    skip_layers: Annotated[
        str | None, option("--skip-layers", panel=OBJECTIVE, help="Blocks of layer-skip: 7,8 or 7-9.")
    ] = None,
    mode: Annotated[
        str | None, option("--mode", panel=OBJECTIVE, help="paper, or released: as the published code does.")
    ] = None,
    target: Annotated[
        str | None, option("--target", panel=OBJECTIVE, help="extrapolated, or inverse: of guidance that is built in.")
    ] = None,
    path: Annotated[str | None, option("--path", panel=OBJECTIVE, help="linear or cosine.")] = None,
    time: Annotated[str | None, option("--time", panel=OBJECTIVE, help="log-normal or uniform.")] = None,
    steps: r.StepsOption = None,
    minutes: r.MinutesOption = None,
    batch_size: Annotated[
        int | None, option("--batch-size", panel=LENGTH, help="Images per step, of all processes together.")
    ] = None,
    micro_batches: r.MicroBatchesOption = None,
    learning_rate: r.LearningRateOption = None,
    warmup: r.WarmupOption = None,
    weight_decay: Annotated[float | None, option("--weight-decay", panel=LENGTH, help="Of AdamW.")] = None,
    ema: r.EMAOption = None,
    clip: Annotated[float | None, option("--clip", panel=LENGTH, help="Largest norm of the gradient.")] = None,
    exit_weight: Annotated[float | None, option("--exit-weight", panel=LENGTH, help="Of the loss of early-exit heads.")] = None,
    dropout: Annotated[
        float | None, option("--dropout", panel=LENGTH, help="Share of samples trained without their label.")
    ] = None,
    class_dropout: Annotated[
        float | None,
        option("--class-dropout", panel=LENGTH, help="Share trained with their superclass alone; default the recipe's."),
    ] = None,
    seed: r.SeedOption = None,
    device: r.DeviceOption = None,
    dtype: r.DtypeOption = None,
    compile: Annotated[
        bool | None, option("--compile/--no-compile", panel=MACHINE, help="torch.compile the network; needs a C++ compiler.")
    ] = None,
    graph: Annotated[
        bool | None, option("--graph/--no-graph", panel=MACHINE, help="On a CUDA device, capture the step as a graph.")
    ] = None,
    workers: Annotated[int | None, option("--workers", panel=MACHINE, help="Processes that make batches.")] = None,
    checkpoint_every: r.CheckpointOption = None,
    snapshot_every: r.SnapshotOption = None,
    preview_every: Annotated[int | None, option("--preview-every", help="Steps between sheets of pictures; 0: none.")] = None,
    vae: Annotated[Path | None, option("--vae", help="VAE that decodes the previews of latents.")] = None,
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
    settings = given(
        steps=steps,
        minutes=minutes,
        batch_size=batch_size,
        micro_batches=micro_batches,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        ema=ema,
        clip=clip,
        exit_weight=exit_weight,
        trained=trained,
        seed=seed,
        device=device or default_device(),
        dtype=dtype,
        compile=compile,
        graph=graph,
        workers=workers,
        checkpoint_every=checkpoint_every,
        snapshot_every=snapshot_every,
        preview_every=preview_every,
    )
    layers = None if skip_layers is None else tuple(parse_integers(skip_layers))
    signal = {"weak": weak, "weight": weight, "power": power, "tau": tau, "high": high, "layers": layers}
    if objective := given(**signal, mode=mode, target=target, path=path, time=time):
        settings["objective"] = objective
    network = given(data=data, image_size=image_size, flip=flip, tier=tier, family=family, heads=heads, size=size)
    network |= given(exit_layer=exit_layer, name=name, affine_norms=affine_norms, attention=attention) | (
        {} if start is None else {"from": start}
    )
    dropouts = given(everything=dropout, species=class_dropout)
    if resume:
        trainer = _resumed(out, recipe, network, settings, dropouts, vae)
    else:
        trainer = _begun(out, recipe, network, settings, dropouts, vae, "new" if resume is None else "fresh")
    raise typer.Exit(show_run(trainer, vae))


def _begun(
    out: Path,
    recipe: str | None,
    network: dict[str, Any],
    settings: dict[str, Any],
    dropouts: dict[str, float],
    vae: Path | None,
    start: "Start",
) -> "Trainer":
    """The trainer of a new run: the recipe's network, fitted to the data, of another size, or a checkpoint's."""
    from segue.models.attention_kind import spec_with_attention
    from segue.models.spec import SiTSpec

    from .loop import Trainer
    from .preview import check_previews
    from .processes import launched
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
    _refuse_of_velocities(spec, network | settings | dropouts)
    if "from" in network:
        begun = _starting(network, source)
        spec, initial, facts = begun.spec, begun.tensors, facts | {"from": begun.facts}
        _say(f"from {begun}")
    elif isinstance(spec, SiTSpec):
        spec = sized(spec, network["size"]) if "size" in network else spec
        spec = replace(spec, exits=(network["exit_layer"],)) if "exit_layer" in network else spec
        spec = replace(spec, affine_norms=network.get("affine_norms", False))
        spec = replace(spec, path=settings.get("objective", {}).get("path", spec.path))
    if "attention" in network:
        spec = spec_with_attention(spec, network["attention"])
    spec = replace(spec, name=network.get("name", spec.name))
    values = asdict(chosen.settings)
    without = {} if getattr(spec, "parents", ()) else {"species": 0.0}
    values["dropout"] = values["dropout"] | without | dropouts
    made = TrainSettings.from_dict(values | {"micro_batches": launched()} | settings)
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
    dropouts: dict[str, float],
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
    _refuse_of_velocities(spec, settings | dropouts)
    command = facts.get("command", {}) | network
    source = _source(command) if "data" in command else get_recipe(command.get("recipe", "herbarium")).source
    values = record["settings"]
    if dropouts:
        settings = settings | {"dropout": values["dropout"] | dropouts}
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
    return starting_weights(network["from"], source, **hints, affine_norms=network.get("affine_norms", False))


def _refuse_of_velocities(spec: "Spec", options: dict[str, Any]) -> None:
    """Raise ``ValueError`` for an option of networks that predict a velocity where ``spec`` is of none."""
    from segue.models.spec import SiTSpec

    for name, shown in OF_VELOCITIES.items():
        if name in options and not isinstance(spec, SiTSpec):
            raise ValueError(f"{spec.name} is {spec.kind}, which takes no {shown}")


def _refuse_without_from(network: dict[str, Any]) -> None:
    if "from" in network:
        return
    for name in ("family", "heads"):
        if name in network:
            raise ValueError(f"--{name} is of a checkpoint, and there is no --from; got {network[name]!r}")


def _say(text: str) -> None:
    """A line on stderr, by the first process of a run."""
    from .processes import speaks

    if speaks():
        typer.echo(text, err=True)
