"""What a server accepts and how much of it: limits, keys and defaults, checked before anything is loaded."""

import math
from dataclasses import dataclass, fields
from ipaddress import ip_address

LOOPBACK_NAME = "localhost"
SHORTEST_KEY = 16  # characters: their number alone keeps keys from being guessed, wrong ones are refused at once


@dataclass(frozen=True)
class Settings:
    """``name`` is what the model is called in requests; ``guidance`` the rule of a request that names none.

    slots: samples that share a step; queue: requests that wait for one.  max_body in bytes, max_pixels of a picture (None:
    twice those of the model's own size), max_steps of the solver, max_images of a request; deadline in seconds, the longest
    that a request may take and what it has where it names none; rate in requests a minute and client; max_requests at once;
    body_seconds until a body has arrived; send_seconds that a client has to read on, see :class:`.server.Connection`;
    heartbeat in seconds between two signs of life of a stream; warm: a picture is drawn for nobody before the server is
    ready.  Raises ``ValueError`` with the value.
    """

    name: str = "herbarium"
    guidance: str | None = None
    slots: int = 8
    queue: int = 64
    keys: tuple[str, ...] = ()
    rate: float | None = None
    max_body: int = 1 << 16
    max_pixels: int | None = None
    max_steps: int = 200
    max_images: int = 10
    max_requests: int = 1024
    deadline: float | None = None
    body_seconds: float = 10.0
    send_seconds: float = 30.0
    heartbeat: float = 15.0
    warm: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not (math.isfinite(value) and (value > 0 or (field.name == "queue" and value == 0))):
                raise ValueError(f"{field.name.replace('_', '-')} must be a number above 0, got {value}")
        from segue.engine.scheduling.scheduler import MOST_SLOTS  # needs torch, and whoever makes settings has it

        if self.slots > MOST_SLOTS:
            raise ValueError(f"slots must be at most {MOST_SLOTS}, got {self.slots}")
        if not self.name.strip():
            raise ValueError(f"the name of a model must not be empty, got {self.name!r}")
        for place, key in enumerate(self.keys, 1):
            if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(f"an API key has at least {SHORTEST_KEY} ASCII characters and no spaces, not so key {place}")


def is_loopback(host: str) -> bool:
    """Whether an address to bind to can be reached from this machine alone."""
    if host == LOOPBACK_NAME:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
