"""``segue score`` and ``segue tune-scales``: what the commands accept.

Modules that import torch are imported inside the commands, so that ``segue --help`` does not wait for them.
"""

from pathlib import Path
from typing import Annotated

import typer

from segue.engine.cli import options as o

SEARCHED, JUDGED, JUDGED_FROM = 192, 960, 100_000  # samples of a search and of a judgement, and the first seed of the second
DTYPE = "float32"

PicturesArgument = Annotated[
    Path | None,
    typer.Argument(help="Pictures that exist: an .npz of segue sample or of ADM's suite, or a folder of PNG files."),
]
RulesOption = Annotated[
    list[str] | None,
    typer.Option(*o.RULE_NAMES, help="A rule as in segue sample; repeat it.  Default: all with numbers."),
]
JudgesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        help="herbarium-classifier, herbarium-judge, colours, textures, efficientnet-lite0, timm/NAME, torchvision/NAME or "
        "package.module:callable; repeat it.",
    ),
]
RealOption = Annotated[
    str | None, typer.Option("--real", help="Real samples: herbarium, an .npz file or a folder.  Default: the model's own.")
]
RealCountOption = Annotated[int | None, typer.Option("--real-samples", help="How many of them; default 10000 leaves, or all.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float32 (default), in which rows of all devices can be compared, or another.")
]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Steps of the solver; default 28.")]
SolverOption = Annotated[str | None, typer.Option("--solver", help="As in segue sample; default euler.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Samples drawn at once; default 32, on CUDA 256.")]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="JSON-lines file (.jsonl) that rows are added to; default out/quality.jsonl."),
]
LimitOption = Annotated[
    float | None, typer.Option("--limit-minutes", help="No rule begins that would end after this; exit code 3 if one is left.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The rows as JSON, and nothing else.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command()(score)
    app.command("tune-scales")(tune_scales)


def score(
    pictures: PicturesArgument = None,
    guidance: RulesOption = None,
    model: o.ModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    vae: o.VAEOption = None,
    weak: o.WeakOption = None,
    adapter: o.AdapterOption = None,
    adapter_scale: o.AdapterScaleOption = None,
    calibration: o.CalibrationOption = None,
    device: o.DeviceOption = None,
    dtype: DtypeOption = None,
    linears: o.LinearsOption = None,
    judge: JudgesOption = None,
    real: RealOption = None,
    real_samples: RealCountOption = None,
    samples: Annotated[int | None, typer.Option(help="Samples of each rule, of all classes in turn; default 960.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first sample; default 100000.")] = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    batch: BatchOption = None,
    effective_scale: Annotated[
        bool, typer.Option("--effective-scale/--no-effective-scale", help="Also the CFG scale that a rule amounts to.")
    ] = True,
    beside_cfg: Annotated[bool, typer.Option("--beside-cfg", help="Also CFG at the effective scale of every rule.")] = False,
    confusion: Annotated[int, typer.Option(help="Also the most frequent mistakes of each rule, so many.")] = 0,
    out: OutOption = None,
    limit_minutes: LimitOption = None,
    report: Annotated[
        bool,
        typer.Option("--report", help="Score nothing; tables of the rows in the file, by --model, -g, --samples and --seed."),
    ] = False,
    into: Annotated[
        Path | None, typer.Option(help="With --report: a file whose marked block is replaced by the tables.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score guidance rules on a model, or pictures that exist: accuracy, Frechet distance and more, with intervals and costs.

    Rows go into one file, rule by rule; a rule that the file holds is not drawn again, so the same command goes on where it
    stopped.

    [bold]Examples[/bold]

    segue score -g none -g cfg:scale=1.5 --samples 192

    segue score -g sgg --judge herbarium-judge --judge efficientnet-lite0 --confusion 5

    segue score --adapter sgg

    segue score --calibration sgg

    segue score samples.npz --judge herbarium-judge

    segue score --report

    segue score --report --out bench/results/quality.jsonl --model herbarium --samples 960
    """
    from .report_command import write_report
    from .score_command import Panel, Report, score_model, score_pictures
    from .scoring import RESULTS

    out = out or RESULTS
    drawing = {"samples": samples, "first_seed": seed, "steps": steps, "solver": solver, "batch": batch}
    drawing = {name: value for name, value in drawing.items() if value is not None}
    panel, shown = Panel(judge, real, real_samples), Report(json, confusion)
    how = {"family": family, "heads": heads, "branch_head": branch_head, "revision": revision, "variant": variant}
    how |= {"vae": vae, "weak": weak, "adapter": adapter, "adapter_scale": adapter_scale}
    source = o.Source(model, device=device, dtype=dtype or DTYPE, linears=linears, **how)
    if into is not None and not report:
        raise ValueError(f"--into {into} goes with --report")
    of_drawing: dict[str, object] = {"limit_minutes": limit_minutes, "beside_cfg": beside_cfg or None}
    of_drawing |= {"no_effective_scale": None if effective_scale else True, "calibration": calibration}
    of_model = {"dtype": dtype, "linears": linears} | how
    if report:
        if pictures is not None:
            raise ValueError(f"--report shows rows that are there: leave {pictures} out")
        refused = {"judge": judge, "real": real, "real_samples": real_samples, "json": json or None}
        refused |= {"steps": steps, "solver": solver, "batch": batch, "confusion": confusion or None} | of_drawing
        _refuse(refused, "--report shows rows that are there")
        if model is None:
            _refuse({"device": device} | of_model, "--report reads weights of a --model alone")
            _refuse({"guidance": guidance}, "--report knows the numbers of rules by a --model")
        write_report(out, source if model else None, samples, seed, into, guidance)
    elif pictures is not None:
        _refuse({"model": model, "guidance": guidance} | of_drawing | of_model | drawing, f"{pictures} was drawn already")
        score_pictures(pictures, panel, device, out, shown)
    else:
        trial = {"samples": JUDGED, "first_seed": JUDGED_FROM} | drawing
        _exit(score_model(source, guidance, panel, trial, out, limit_minutes, effective_scale, shown, beside_cfg, calibration))


def tune_scales(
    guidance: RulesOption = None,
    model: o.ModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    vae: o.VAEOption = None,
    weak: o.WeakOption = None,
    device: o.DeviceOption = None,
    dtype: DtypeOption = None,
    linears: o.LinearsOption = None,
    extractor: Annotated[
        str | None, typer.Option(help="Whose scores choose, as --judge and none of those; default herbarium-classifier.")
    ] = None,
    judge: JudgesOption = None,
    real: RealOption = None,
    real_samples: RealCountOption = None,
    samples: Annotated[int, typer.Option(help="Samples of each candidate.")] = SEARCHED,
    seed: Annotated[int, typer.Option(help="Of the first sample of a candidate.")] = 0,
    judge_samples: Annotated[int, typer.Option(help="Samples of what was chosen, and of none.")] = JUDGED,
    judge_seed: Annotated[int, typer.Option(help="Of the first of them.")] = JUDGED_FROM,
    steps: StepsOption = None,
    solver: SolverOption = None,
    batch: BatchOption = None,
    out: OutOption = None,
    limit_minutes: LimitOption = None,
    write: Annotated[bool, typer.Option("--write", help="Make them the numbers of the bundled model.")] = False,
    json: JsonOption = False,
) -> None:
    """Search the scale, the weight and the switch of rules by score, and have others judge what was chosen.

    Chosen is the least Frechet distance among numbers whose accuracy is no lower than that of unguided samples, by one
    extractor; judged are other samples, by other extractors.  Rows go into one file; the same command goes on where it stopped.

    [bold]Examples[/bold]

    segue tune-scales -g cfg -g exit

    segue tune-scales --extractor herbarium-classifier --judge herbarium-judge --judge colours --limit-minutes 30
    """
    from .score_command import Panel, Report
    from .scoring import RESULTS
    from .tune_command import Budget, Roles, tune_model

    common = {"steps": steps, "solver": solver, "batch": batch}
    common = {name: value for name, value in common.items() if value is not None}
    search = {"samples": samples, "first_seed": seed} | common
    budget = Budget(search, {"samples": judge_samples, "first_seed": judge_seed} | common)
    how = {"family": family, "heads": heads, "branch_head": branch_head, "revision": revision, "variant": variant}
    how |= {"vae": vae, "weak": weak}
    source = o.Source(model, device=device, dtype=dtype or DTYPE, linears=linears, **how)
    roles = Roles(extractor, Panel(judge, real, real_samples))
    _exit(tune_model(source, guidance, roles, budget, out or RESULTS, limit_minutes, Report(json), write))


def _refuse(options: dict, reason: str) -> None:
    """Raise ``ValueError`` for the first option that was given."""
    for name, value in options.items():
        if value is not None:
            shown = "" if value is True else f" {value[0] if isinstance(value, list) else value}"
            option = {"first_seed": "seed"}.get(name, name).replace("_", "-")
            raise ValueError(f"{reason}: leave --{option}{shown} out")


def _exit(code: int) -> None:
    if code:
        raise typer.Exit(code)
