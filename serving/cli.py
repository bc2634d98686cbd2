"""``segue serve`` and ``segue batch``: what this folder adds to the command line.

Modules that import torch or FastAPI are imported inside the commands, so that ``segue --help`` works without the one and does
not wait for the other.
"""

import typer

from .batch_command import batch
from .serve_options import serve


def register(app: typer.Typer) -> None:
    """Add the commands of this folder to ``app``."""
    app.command()(serve)
    app.command()(batch)
