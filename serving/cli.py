"""``segue batch``: what this folder adds to the command line.

Modules that import torch are imported inside the commands, so that ``segue --help`` does not wait for them.
"""

import typer

from .batch_command import batch


def register(app: typer.Typer) -> None:
    """Add the commands of this folder to ``app``."""
    app.command()(batch)
