"""From the options of ``segue serve`` to a server that draws."""

import os
import sys
from pathlib import Path
from typing import Any

from segue.engine.cli.options import DEFAULT_RULE, UNGUIDED, Source

from .app import create_app
from .encoded import public_name
from .opening import open_served
from .served_model import check_rule
from .server import bound_socket, make_server, url_of
from .settings import Settings, is_loopback

KEY_VARIABLE = "SEGUE_API_KEY"


def serve_model(
    source: Source, host: str, port: int, proxies: str | None, drain: int | None, quiet: bool, options: dict[str, Any]
) -> None:
    """Check everything, load the model, and serve until a signal.  Raises ``ValueError`` or ``OSError``."""
    settings = settings_of(source, options)
    bound = bound_socket(host, port)
    with bound:
        app = create_app(open_served(source), settings)
        tell(settings, host, url_of(bound))
        make_server(app, proxies, drain, quiet).run(sockets=[bound])


def settings_of(source: Source, options: dict[str, Any]) -> Settings:
    """The settings of a server of ``source``, by the options that were given.  Raises ``ValueError``."""
    check_rule(options["guidance"])
    given = {name: value for name, value in options.items() if value is not None}
    default = DEFAULT_RULE if source.adapter is None else UNGUIDED
    return Settings(**{"name": public_name(source.name), "guidance": default} | given)


def tell(settings: Settings, host: str, url: str) -> None:
    """Say where the server is, and who may reach it."""
    if not is_loopback(host) and not settings.keys:
        print(f"warning: {host} can be reached from other machines, and no API key is asked for", file=sys.stderr)
    print(f"{settings.name} at {url}: the page; /v1/images/generations; Ctrl-C stops", flush=True)


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The API keys: of a file, one on each line, or of the environment.  Raises ``ValueError`` or ``OSError``."""
    if file is None:
        return tuple(filter(None, [os.environ.get(KEY_VARIABLE)]))
    keys = tuple(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    if not keys:
        raise ValueError(f"{file} holds no API key")
    return keys
