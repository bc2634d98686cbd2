"""Options of the commands that can run on Ray."""

from typing import Annotated, Any

import typer

PANEL = "Ray"
RayOption = Annotated[
    bool, typer.Option("--ray", rich_help_panel=PANEL, help="Draw in processes of Ray's, on one machine or many.")
]
CpusOption = Annotated[
    float | None, typer.Option("--cpus", rich_help_panel=PANEL, show_default="1", help="CPUs of a process, and its threads.")
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        "--gpus", rich_help_panel=PANEL, show_default="1 if there are any", help="GPUs of a process; parts share one."
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", rich_help_panel=PANEL, show_default="RAY_ADDRESS, or this machine", help="A running cluster."),
]


def ray_options(ray: bool, **options: Any) -> dict[str, Any] | None:
    """Those that were given; None without ``--ray``.

    Raises ``ValueError`` for any without ``--ray``, and with it where Ray is not installed.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if ray:
        from .ray_cluster import check_installed

        check_installed()
        return given
    for name, value in given.items():
        raise ValueError(f"--{name} {value} is for processes of Ray's: give --ray")
    return None
