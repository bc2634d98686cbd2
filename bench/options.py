"""Options that the commands of ``segue bench`` share."""

from pathlib import Path
from typing import Annotated

import typer

from segue.engine.cli.options import RULE_NAMES

ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--model", help="NAME, NAME@WIDTH or NAME:PIXELS, e.g. herbarium, sit-xl/2@576, sd3.5-medium:512; repeat it."),
]
RulesOption = Annotated[
    list[str] | None, typer.Option(*RULE_NAMES, help="none, cfg, slg, sgg, sgg-exit, or a rule in full; repeat it.")
]
PeersOption = Annotated[
    list[str] | None,
    typer.Option("--peer", help="published on our modules, eager, compiled, modular, cache-dit, xdit; repeat it."),
]
BatchOption = Annotated[list[int] | None, typer.Option("--batch", help="Samples drawn together; repeat it.")]
SizeOption = Annotated[int | None, typer.Option("--size", help="Image side in pixels.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Calls of a run, even; default 2 on the CPU, 28 on CUDA.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N.")]
RepetitionsOption = Annotated[int, typer.Option("--repetitions", help="Rounds of every case, at most.")]
CaseLimitOption = Annotated[
    float, typer.Option("--case-seconds", help="Timed seconds of one case; three rounds are made even if they take longer.")
]
LimitOption = Annotated[
    float,
    typer.Option(
        "--limit-minutes", help="No case starts that would end after this by its estimate; exit code 3 if one is left out."
    ),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads of everything that is run.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="JSON-lines file (.jsonl) to add rows to; a CSV file goes beside it.")
]
ResumeOption = Annotated[bool, typer.Option("--resume/--again", help="Skip cases that the file holds / measure them again.")]
MemoryOption = Annotated[
    bool,
    typer.Option(
        "--keep-memory/--default-memory",
        help="Freed host memory stays with the process, for all variants alike / as the C library does it.",
    ),
]
QuickOption = Annotated[bool, typer.Option("--quick", help="One small model, three rounds.")]
