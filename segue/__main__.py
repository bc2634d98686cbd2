"""The command line, ``segue`` or ``python -m segue``: the commands of every folder in one program."""

import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Annotated

import typer

from segue.bench import cli as bench_commands
from segue.engine.cli import commands as engine_commands
from segue.engine.cli.errors import CommandGroup
from segue.engine.cli.library_messages import quiet_libraries
from segue.serving import cli as serving_commands
from segue.training import cli as training_commands

from . import __version__

app = typer.Typer(
    name="segue",
    cls=CommandGroup,
    help="Guided sampling for diffusion transformers, in which only the branches that count are evaluated.",
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
serving_commands.register(app)
bench_commands.register(app)


# How long a CPU thread that waits for others spins before it sleeps: PyTorch's OpenMP library reads this as it is loaded.  Its
# own default of 300000 takes the cores from whatever else runs: on two cores with a load of 6, a run of the herbarium took four
# times as long or more (docs/production.md).  With 3000 a run on cores of its own is as fast as with the default.
SPINS = ("GOMP_SPINCOUNT", "3000")
SAID_OTHERWISE = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
PICTURES = ("demo", "quality", "calls")  # of segue bench; its other commands time what is set outside


def share_cores(arguments: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Let threads that wait sleep soon, unless ``environment`` says how they wait or the command measures time."""
    timed = bool(arguments) and arguments[0] == "bench" and not set(arguments[1:2]) & set(PICTURES)
    if not timed and not set(SAID_OTHERWISE) & environment.keys():
        environment.update([SPINS])


def main() -> None:
    share_cores(sys.argv[1:], os.environ)  # before torch is imported
    quiet_libraries(os.environ)
    app(prog_name="segue")


if __name__ == "__main__":
    main()
