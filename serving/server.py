"""The process that serves: an application on a socket, until it is told to stop and every accepted request has ended."""

import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

BACKLOG = 2048  # connections that the system may hold until they are taken


class Server(uvicorn.Server):
    """Uvicorn's server, whose application knows of a signal at once: ``/ready`` and new requests say 503 from then on.

    A signal ends it as it should end, with code 0; a second Ctrl-C ends it at once, and gives up what was accepted.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.serving.stop()  # type: ignore[union-attr]
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def stop(self) -> None:
        """What a signal does, from any thread."""
        self.handle_exit(signal.SIGTERM, None)


def make_server(app: FastAPI, proxies: str | None = None, drain: int | None = None, quiet: bool = False) -> Server:
    """A server of ``app``; ``proxies``: addresses whose ``X-Forwarded-For`` counts; ``drain``: seconds of what was accepted."""
    trusted: dict[str, Any] = {"proxy_headers": proxies is not None, "forwarded_allow_ips": proxies}
    log: dict[str, Any] = {"log_level": "warning" if quiet else "info", "access_log": not quiet}
    # h11 bounds the head of a request, the faster parser does not
    how: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "on", "server_header": False, "backlog": BACKLOG}
    return Server(uvicorn.Config(app, timeout_graceful_shutdown=drain, **how, **trusted, **log))


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket on an address; raises ``OSError``, in one sentence, where it is taken or not of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)  # from here on a client that is told the address waits, and is not refused
    except OSError as error:
        raise OSError(f"cannot listen at {host} port {port}: {error.strerror or error}") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a bound socket is reached by a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
