"""``segue reproduce``: what the commands accept.

Modules that import torch are imported inside the commands, so that ``segue --help`` does not wait for them.
"""

from pathlib import Path
from typing import Annotated

import typer

ROWS, SCORES, RUNS = Path("bench/results/reproduction.jsonl"), Path("bench/results/quality.jsonl"), Path("runs/reproduction")

reproduce = typer.Typer(no_args_is_help=True, help="Check the claims of the paper on guidance here, as tables and figures.")

IntoOption = Annotated[
    Path | None,
    typer.Option("--into", help="Folder of pages whose marked blocks are replaced, docs/reproduction.  Default: tables."),
]
RowsOption = Annotated[Path, typer.Option("--out", "-o", help="JSON-lines file (.jsonl) that rows are added to.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder for networks that are trained.")]


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
