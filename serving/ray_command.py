"""``segue serve --ray``: from the options to a server in processes of Ray's."""

import os
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from segue.engine.cli.options import Source
from segue.engine.rules.integers import parse_integers

from .app import create_app
from .command import settings_of, tell
from .opening import open_served
from .ray_app import Replicas, serve_on_ray
from .settings import Settings


@dataclass(frozen=True)
class ModelApp:
    """Makes the application of a model, in a process that draws; ``folder`` is what paths start from."""

    source: Source
    folder: str

    def __call__(self, settings: Settings) -> FastAPI:
        os.chdir(self.folder)  # raises where the machines of a cluster share no files
        return create_app(open_served(self.source), settings)


def serve_model_on_ray(
    source: Source,
    host: str,
    port: int,
    proxies: str | None,
    drain: int | None,
    options: dict[str, Any],
    ray: dict[str, Any],
) -> None:
    """Check what can be checked without the model, and serve until a signal.  Raises ``ValueError`` or ``OSError``."""
    for name, value in {"proxy": proxies, "send-seconds": options["send_seconds"]}.items():
        if value is not None:
            raise ValueError(f"--{name} {value} does not apply with --ray: a proxy of Ray's stands before the server")
    if (source.device or "").startswith("cpu"):
        ray = {"gpus": 0.0} | ray
    replicas, settings = replicas_of(**ray), settings_of(source, options)
    make_app = ModelApp(source, os.getcwd())
    serve_on_ray(make_app, settings, replicas, host, port, drain, lambda url: tell(settings, host, url))


def replicas_of(replicas: str = "1", **options: Any) -> Replicas:
    """As the options say; ``replicas`` is a number, or the least and the most as in ``1-8``.  Raises ``ValueError``."""
    try:
        counts = parse_integers(replicas)
    except ValueError:
        raise ValueError(f"--replicas is a number, or a range such as 1-8, got {replicas!r}") from None
    return Replicas(counts[0], counts[-1], **options)
