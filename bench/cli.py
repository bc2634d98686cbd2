"""``segue bench``: what the commands accept.

Modules that import torch are imported inside the commands, so that ``segue --help`` does not wait for them.
"""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .calibration import commands as calibration_commands
from .load import commands as load_commands
from .pictures import commands as picture_commands
from .quality import commands as quality_commands
from .reproduction import commands as reproduction_commands
from .suites import SUITES

RESULTS = Path("bench/results")

bench = typer.Typer(no_args_is_help=True, help="Measure what guidance costs here, beside other implementations.")


def register(app: typer.Typer) -> None:
    """Add ``segue bench``, ``segue score``, ``segue tune-scales`` and ``segue reproduce`` to ``app``."""
    picture_commands.register(bench)
    load_commands.register(bench)
    app.add_typer(bench, name="bench")
    quality_commands.register(app)
    calibration_commands.register(app)
    reproduction_commands.register(app)


def _suite_command(name: str):
    def command(
        model: o.ModelsOption = None,
        rule: o.RulesOption = None,
        peer: o.PeersOption = None,
        batch: o.BatchOption = None,
        size: o.SizeOption = None,
        steps: o.StepsOption = None,
        dtype: o.DtypeOption = None,
        device: o.DeviceOption = None,
        repetitions: o.RepetitionsOption = 7,
        case_seconds: o.CaseLimitOption = 60.0,
        limit_minutes: o.LimitOption = 30.0,
        threads: o.ThreadsOption = None,
        out: o.OutOption = None,
        resume: o.ResumeOption = True,
        keep_memory: o.MemoryOption = True,
        quick: o.QuickOption = False,
    ) -> None:
        from .runs import run_suites

        _exit(run_suites((name,), out, resume, threads, keep_memory, **_settings(locals())))

    return command


def _exit(code: int) -> None:
    """End with a code other than 0 where a case failed or was left out; the others have their rows."""
    if code:
        raise typer.Exit(code)


def _settings(given: dict) -> dict:
    """Options of a command as fields of :class:`segue.bench.session.Settings`."""
    quick = given["quick"]
    return {
        "models": tuple(given["model"] or ()),
        "rules": tuple(given["rule"] or ()),
        "peers": tuple(given["peer"] or ()),
        "batches": tuple(given["batch"] or ()),
        "size": given["size"],
        "steps": given["steps"],
        "dtype": given["dtype"],
        "device": given["device"],
        "repetitions": min(given["repetitions"], 3) if quick else given["repetitions"],
        "case_limit_s": given["case_seconds"],
        "limit_minutes": given["limit_minutes"],
        "quick": quick,
    }


for _name, _purpose in SUITES.items():
    bench.command(_name, help=f"{_purpose[:1].upper()}{_purpose[1:]}.")(_suite_command(_name))


@bench.command()
def run(
    suites: Annotated[str, typer.Option(help="Comma-separated suites, in this order.")] = "cost,e2e",
    model: o.ModelsOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    repetitions: o.RepetitionsOption = 7,
    case_seconds: o.CaseLimitOption = 40.0,
    limit_minutes: o.LimitOption = 12.0,
    threads: o.ThreadsOption = None,
    out: o.OutOption = None,
    resume: o.ResumeOption = True,
    keep_memory: o.MemoryOption = True,
    quick: o.QuickOption = False,
) -> None:
    """Several suites under one time limit; start it again with the same --out to go on where it stopped.

    Example: segue bench run --suites cost,e2e --limit-minutes 12 --out bench/results/cpu.jsonl
    """
    from .runs import run_suites

    given = dict.fromkeys(("rule", "peer", "batch", "size", "steps")) | locals()
    names = tuple(name.strip() for name in suites.split(","))
    _exit(run_suites(names, out, resume, threads, keep_memory, **_settings(given)))


@bench.command()
def training(
    batch: Annotated[int, typer.Option(help="Samples of a step.")] = 32,
    repetitions: o.RepetitionsOption = 7,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    threads: o.ThreadsOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON-lines file (.jsonl) to add rows to.")] = None,
) -> None:
    """What guidance built in by training costs: a step of every weak signal over a plain one, on the herbarium's network.

    Example: segue bench training --batch 32 --out out/training.jsonl
    """
    from .training_cost import print_training_cost

    print_training_cost(batch, repetitions, device, dtype, threads, out)


@bench.command()
def table(
    roofline: Annotated[bool, typer.Option(help="Also measure this machine and add the least times it allows.")] = False,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
) -> None:
    """The cost of guidance by counting, from the model specs alone."""
    from .runs import print_tables

    print_tables(roofline, device, dtype)


@bench.command()
def census(
    model: Annotated[str, typer.Argument(help="NAME, NAME@WIDTH or NAME:PIXELS, e.g. sd3.5-medium, dit-xl/2:512.")],
    card: Annotated[str, typer.Option(help="h100, h200, or measured, with --ceilings.")] = "h100",
    ceilings: Annotated[Path | None, typer.Option(help="Result file with the ceilings of a card.")] = None,
    rule: Annotated[str, typer.Option(help="none, cfg, slg, sgg, sgg-exit, or a rule in full.")] = "sgg",
    batch: Annotated[int, typer.Option(help="Samples drawn together.")] = 1,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    kernels: Annotated[str, typer.Option(help="As for an engine: auto, triton, auto,attention=triton, ...")] = "auto",
    linears: Annotated[str, typer.Option(help="native, or fp8: the large matrices of the blocks.")] = "native",
    steps: Annotated[int, typer.Option(help="Calls of a run.")] = 28,
    against: Annotated[Path | None, typer.Option(help="An earlier census (--json): what came and what went.")] = None,
    beside: Annotated[Path | None, typer.Option(help="Result file with the suite step: measured beside predicted.")] = None,
    top: Annotated[int, typer.Option(help="Rows of the table of the slowest operations.")] = 12,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Tables for a document.")] = False,
) -> None:
    """What a step consists of, kernel by kernel, and how long it should take on a card, without a GPU.

    Example: segue bench census sd3.5-medium --card h200
    """
    from .census_report import print_census

    form = {"top": top, "json": json, "markdown": markdown}
    print_census(model, card, ceilings, rule, batch, dtype, kernels, linears, steps, against, beside, **form)


@bench.command()
def mixture(
    out: Annotated[Path | None, typer.Option(help="PNG file to draw the first study into; needs matplotlib.")] = None,
    samples: Annotated[int, typer.Option(help="Points of each rule.")] = 1200,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, with the corrections by noise level.")] = False,
) -> None:
    """What guidance does where everything is known: rules on exact mixtures in the plane.

    Example: segue bench mixture --out docs/method.png
    """
    from .mixture_report import report_mixtures

    report_mixtures(out, samples, json)


@bench.command()
def compare(
    before: Annotated[str, typer.Argument(help="A result file or a git revision.")],
    after: Annotated[str, typer.Argument(help="A result file or a git revision.")],
    all_rows: Annotated[bool, typer.Option("--all", help="Also rows that agree.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit code 1 if anything is worse.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Flag the differences between two results that the spread of both does not explain."""
    from .compare import compare as compare_rows
    from .compare import environment_changes, load_side

    sides = load_side(before), load_side(after)
    differences, lone = compare_rows(*sides)
    for line in [] if json else environment_changes(*sides):
        typer.echo(line)
    for difference in differences:
        if json:
            typer.echo(json_module.dumps(difference.as_dict()))
        elif all_rows or difference.verdict != "same":
            typer.echo(str(difference))
    if not json:
        for line in lone if all_rows else []:
            typer.echo(line)
        counts = {name: sum(d.verdict == name for d in differences) for name in ("worse", "better", "same")}
        typer.echo(", ".join(f"{count} {name}" for name, count in counts.items()) + f", {len(lone)} on one side only")
    if strict and any(difference.verdict == "worse" for difference in differences):
        raise typer.Exit(1)


@bench.command()
def report(
    results: Annotated[list[Path] | None, typer.Argument(help="Result files; default: all in bench/results.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.md and the plots.")] = RESULTS,
    readme: Annotated[Path | None, typer.Option(help="A document whose marked blocks are replaced.")] = None,
) -> None:
    """Markdown tables and plots from result rows; with --readme also the blocks between a document's markers."""
    from .report import write_report

    for path in write_report(results or sorted(RESULTS.glob("*.jsonl")), out, readme):
        typer.echo(f"wrote {path}")


@bench.command()
def gpu(
    out: Annotated[Path, typer.Option(help="Folder for log, rows and state; start again with it to go on.")],
    limit_minutes: Annotated[float, typer.Option(help="For everything together.")] = 9.7,
    parts: Annotated[str | None, typer.Option(help="Comma-separated parts, in this order; default: all.")] = None,
    wheels: Annotated[Path | None, typer.Option(help="Folder of wheels for the parts, such as diffusers.")] = None,
) -> None:
    """One visit to a GPU: tests, tuning and benchmarks, part by part, resumable, into one folder."""
    from .gpu_visit import run_visit

    names = tuple(name.strip() for name in parts.split(",")) if parts else None
    raise typer.Exit(run_visit(out, limit_minutes, names, wheels))
