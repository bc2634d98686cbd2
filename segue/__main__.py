"""The command line, ``segue`` or ``python -m segue``: the commands of every folder in one program."""

from typing import Annotated

import typer

from segue.bench import cli as bench_commands
from segue.engine.cli import commands as engine_commands
from segue.engine.cli.errors import CommandGroup
from segue.training import cli as training_commands

from . import __version__

app = typer.Typer(
    name="segue",
    cls=CommandGroup,
    help="Guided sampling for diffusion transformers at close to the cost of unguided sampling.",
    epilog="Exit codes: 0 done, 2 bad input (one sentence on stderr), 130 interrupted, 1 anything else.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"segue {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
):
    # what holds for every command; the help is the program's
    pass


# each folder adds its own commands
engine_commands.register(app)
training_commands.register(app)
bench_commands.register(app)


def main() -> None:
    app(prog_name="segue")


if __name__ == "__main__":
    main()
