"""``segue serve`` and ``curl`` of the documents: the server runs beside the page's other commands, on a port that is free."""

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from typer.testing import CliRunner

from segue.__main__ import app

WRITTEN = re.compile(r"http://(?:127\.0\.0\.1|localhost):8000")
METHODS = {"-d": "POST", "--data": "POST"}
TAKES_VALUE = ("-H", "-d", "--data", "-o", "-X")
ALONE = ("-s", "-N", "-f", "--silent", "--no-buffer", "--fail")


class DocumentServer:
    """At most one server at a time; it is told to stop by :meth:`stop`."""

    def __init__(self, monkeypatch: Any):
        self.monkeypatch, self.server, self.url, self.result = monkeypatch, None, "", None

    def serve(self, arguments: Sequence[str]) -> None:
        """Run ``segue serve`` until it answers; ``AssertionError`` with what it says where it ends instead."""
        self.stop()
        import segue.serving.command as command

        made, ready = command.make_server, threading.Event()

        def kept(*given: Any) -> Any:
            self.server = made(*given)
            self.url = command.url_of(bound[-1])
            ready.set()
            return self.server

        bound: list[Any] = []
        bind = command.bound_socket

        def elsewhere(host: str, _: int) -> Any:
            bound.append(bind("127.0.0.1", 0))
            return bound[-1]

        self.monkeypatch.setattr(command, "make_server", kept)
        self.monkeypatch.setattr(command, "bound_socket", elsewhere)

        def run() -> None:
            self.result = CliRunner().invoke(app, ["serve", *arguments, "--quiet"])
            ready.set()

        self.thread = threading.Thread(target=run)
        self.thread.start()
        ready.wait()
        assert self.server is not None, f"segue serve {' '.join(arguments)}: {self.result.stderr}"
        httpx.get(f"{self.url}/health", timeout=None)
        self.monkeypatch.setattr(command, "make_server", made)
        self.monkeypatch.setattr(command, "bound_socket", bind)

    def stop(self) -> None:
        """Stop the server that runs, if one does; ``AssertionError`` unless it ended well."""
        if self.server is not None:
            self.server.stop()
            self.thread.join()
            self.server = None
            assert self.result.exit_code == 0, self.result.stderr

    def curl(self, arguments: Sequence[str], command: str) -> str:
        """What a ``curl`` prints; a status of 400 or more is an ``AssertionError``."""
        assert self.server is not None, f"{command}: no server was started on this page"
        method, headers, body, out, url = "GET", {}, None, None, ""
        words = iter(arguments)
        for word in words:
            value = next(words) if word in TAKES_VALUE else ""
            if word == "-H":
                name, _, text = value.partition(":")
                headers[name] = text.strip()
            elif word in METHODS:
                method, body = METHODS[word], value
            elif word == "-o":
                out = Path(value)
            elif word == "-X":
                method = value
            elif word not in ALONE:
                assert not word.startswith("-"), f"{command}: nothing here knows {word}"
                url = word
        assert WRITTEN.match(url), f"{command}: the server of the page is at http://127.0.0.1:8000"
        answer = httpx.request(method, WRITTEN.sub(self.url, url), headers=headers, content=body, timeout=None)
        assert answer.status_code < 400, f"{command}: {answer.text}"
        if out is not None:
            out.write_bytes(answer.content)
        return "" if out else answer.text
