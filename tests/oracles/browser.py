"""A headless Chromium driven over a pipe by its own protocol: pages are opened, looked at and photographed."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--hide-scrollbars",
]


class Page:
    """A page of a browser; what it says of errors is collected in ``errors``."""

    def __init__(self, write: int, read: int):
        self.write, self.read = write, os.fdopen(read, "rb")
        self.number, self.session, self.errors = 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers; ``RuntimeError`` with its reason where it refuses."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {} if self.session is None else {"sessionId": self.session}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self.number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.read.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            text += byte
        found = json.loads(text)
        if found.get("method") == "Runtime.exceptionThrown":
            self.errors.append(found["params"]["exceptionDetails"])
        elif found.get("method") == "Log.entryAdded" and found["params"]["entry"]["level"] == "error":
            self.errors.append(found["params"]["entry"])
        return found

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, of a promise what it becomes; ``RuntimeError`` where it throws."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", "it threw"))
        return found["result"].get("value")

    def open(self, url: str) -> None:
        """Go to an address, and wait until the page there is loaded; errors of the page before are forgotten."""
        self.errors.clear()
        self.call("Page.navigate", url=url)
        self.evaluate("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def until(self, condition: str) -> Any:
        """Wait until a condition of the page's document holds; no clock is read."""
        return self.evaluate(
            f"new Promise(done => {{ const look = () => {{ const found = {condition}; if (found) done(found); return found }};"
            "if (!look()) { const watch = new MutationObserver(() => look() && watch.disconnect());"
            "watch.observe(document, {subtree: true, childList: true, attributes: true, characterData: true}) } })"
        )

    def look(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Set the size of the window, and whether the user likes it dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def photograph(self, path: Path) -> None:
        """What the window shows, as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def open_page(profile: Path) -> Iterator[Page]:
    """A page of a browser of its own, whose profile is in ``profile``."""
    (read, to_browser), (from_browser, write) = os.pipe(), os.pipe()
    read, write = _high(read), _high(write)
    command = f'exec "$0" "$@" 3<&{read} 4>&{write}'  # the descriptors that --remote-debugging-pipe takes
    arguments = ["bash", "-c", command, str(PROGRAM), *OPTIONS, f"--user-data-dir={profile}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    process = subprocess.Popen(arguments, pass_fds=(read, write), **quiet)
    os.close(read)
    os.close(write)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)
        process.terminate()
        process.wait()


def _high(descriptor: int) -> int:
    """The same under a number that is not 3 or 4."""
    found = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return found
