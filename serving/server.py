"""The process that serves: an application on a socket, until it is told to stop and every accepted request has ended."""

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger("segue.serving")

BACKLOG = 2048  # connections that the system may hold until they are taken
TICK = 0.1  # seconds between two looks at a second Ctrl-C, as uvicorn's own
LEAST_READ = 1 << 16  # bytes that a client has to take in the seconds it has, or all that there are


class Connection(H11Protocol):
    """A connection that ends where its client stops reading: within ``send_seconds`` it takes ``LEAST_READ`` bytes, or all.

    Without a limit of its own a send waits as long as the client keeps the connection open, and what waits is in memory.
    """

    unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pause_writing hears of every byte that the system does not take

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwait()
        super().connection_lost(exc)

    def _wait(self) -> None:
        seconds = self.config.app.state.serving.settings.send_seconds  # type: ignore[union-attr]
        self.unread = self.loop.call_later(seconds, self._look, self.transport.get_write_buffer_size())

    def _unwait(self) -> None:
        if self.unread is not None:
            self.unread.cancel()
            self.unread = None

    def _look(self, before: int) -> None:
        """Close the connection, unless enough was read of the ``before`` bytes that waited at the last look."""
        if self.transport.get_write_buffer_size() <= before - LEAST_READ:
            self._wait()
            return
        logger.warning("a client stopped reading its answer, and its connection was closed")
        self.transport.abort()  # close() would wait for what is not read


class Server(uvicorn.Server):
    """Uvicorn's server, whose application knows of a signal at once: ``/ready`` and new requests say 503 from then on.

    A signal ends it as it should end, with code 0; a second Ctrl-C ends it at once, and gives up what was accepted.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.serving.stop()  # type: ignore[union-attr]
        self.force_exit |= self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.ensure_future(super().shutdown(sockets))
        while not ending.done():
            if self.force_exit:  # uvicorn waits for its listeners, which from Python 3.12 on wait for their connections
                for connection in list(self.server_state.connections):
                    connection.transport.abort()
            await asyncio.wait([ending], timeout=TICK)
        ending.result()

    def stop(self) -> None:
        """What a signal does, from any thread."""
        self.handle_exit(signal.SIGTERM, None)


def make_server(app: FastAPI, proxies: str | None = None, drain: int | None = None, quiet: bool = False) -> Server:
    """A server of ``app``; ``proxies``: addresses whose ``X-Forwarded-For`` counts; ``drain``: seconds of what was accepted."""
    trusted: dict[str, Any] = {"proxy_headers": proxies is not None, "forwarded_allow_ips": proxies}
    log: dict[str, Any] = {"log_level": "warning" if quiet else "info", "access_log": not quiet}
    # h11 bounds the head of a request, the faster parser does not
    how: dict[str, Any] = {"http": Connection, "ws": "none", "lifespan": "on", "server_header": False, "backlog": BACKLOG}
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
    return url_at(*bound.getsockname()[:2])


def url_at(host: str, port: int) -> str:
    """An address as a browser takes it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
