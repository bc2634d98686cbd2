"""``segue batch``: a table of prompts or labels drawn into a folder, by this process or by a pool of Ray actors."""

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

import typer

from segue.engine.cli import options as o

from .ray_options import PANEL, AddressOption, CpusOption, GpusOption, RayOption, ray_options

_TABLE = "Table"
PROMPT_BATCH = 4
TableArgument = Annotated[Path, typer.Argument(help="A table: .csv, .jsonl or .parquet.", show_default=False)]
PassOption = Annotated[
    bool, typer.Option("--pass-through", rich_help_panel=_TABLE, help="Copy columns that are unknown here into the manifest.")
]
FirstSeedOption = Annotated[
    int | None,
    typer.Option("--first-seed", rich_help_panel=_TABLE, show_default="0", help="Of row 0, counting up, where rows have none."),
]
NegativeOption = Annotated[
    str | None, typer.Option("--negative-prompt", rich_help_panel="Prompts", help="What to avoid, for rows that do not say.")
]
MaxBatchOption = Annotated[
    int | None,
    typer.Option("--max-batch", rich_help_panel="Run", show_default="32, 4 of prompts", min=1, help="Pictures drawn at once."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", rich_help_panel="Output", show_default="the table's name", help="The folder.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", rich_help_panel="Output", help="Let pictures go whose rows have changed or are gone.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", rich_help_panel=PANEL, show_default="1", help="Actors, each with an engine.")
]


def batch(
    table: TableArgument,
    model: o.ModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    t5: o.T5Option = None,
    vae: o.VAEOption = None,
    weak: o.WeakOption = None,
    adapter: o.AdapterOption = None,
    adapter_scale: o.AdapterScaleOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    linears: o.LinearsOption = None,
    attention: o.AttentionOption = None,
    guidance: o.RuleOption = None,
    steps: o.StepsOption = None,
    solver: o.SolverOption = None,
    schedule: o.ScheduleOption = None,
    first_seed: FirstSeedOption = None,
    negative_prompt: NegativeOption = None,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    max_batch: MaxBatchOption = None,
    pass_through: PassOption = False,
    out: OutOption = None,
    force: ForceOption = False,
    json: o.JsonOption = False,
    ray: RayOption = False,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    address: AddressOption = None,
) -> None:
    """Draw a table of labels or prompts into a folder: one picture a row, whatever ends the command; again: go on.

    Columns: label or prompt, and where wanted id, guidance, seed, steps, solver, schedule, negative_prompt, height, width;
    what a row leaves out is what the options say. Rows that cannot be drawn are listed with the reason in failures.jsonl, and
    the exit code is 1.

    [bold]Examples[/bold]

    segue batch leaves.csv --steps 12

    segue batch leaves.csv -g cfg:scale=2 --out drawn --max-batch 8 --json

    segue batch prompts.parquet --model sd3.5-medium/ --ray --workers 4 --gpus 1 --address auto
    """
    from segue.engine.cli.errors import FAILED, fail
    from segue.engine.cli.stream import BATCH_ELSEWHERE
    from segue.engine.numeric_input import check_seed

    from .batch import draw_here, draw_table
    from .batch_drawing import Drawing
    from .batch_ray import Pool
    from .batch_requests import Defaults, Requests
    from .batch_table import read_table

    given = ray_options(ray, workers=workers, cpus=cpus, gpus=gpus, address=address)
    pool = None if given is None else Pool(**given)
    defaults = Defaults(guidance, steps, solver, schedule, check_seed(first_seed or 0), negative_prompt, height, width)
    source = o.Source.of(locals())
    rows = read_table(table, pass_through)
    requests = Requests(source, defaults)
    settled = requests.settle(rows)
    for oddity in settled.oddities:
        print(f"warning: {oddity}", file=sys.stderr)
    size = max_batch or (BATCH_ELSEWHERE if requests.model.saved is None else PROMPT_BATCH)
    drawing = Drawing(out or table.with_suffix(""), source, size)
    report = draw_table(settled, drawing, draw_here if pool is None else pool.draw, force)
    print(json_text.dumps(report.told()) if json else report)
    if report.failed:
        fail(f"{report.failed} of {report.rows} rows failed", FAILED)
