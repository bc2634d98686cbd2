"""What stands before every route: how many requests at once, whose, how often, and how large."""

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusals import RETRY_SECONDS, Refusal
from .settings import Settings

WATCHED = ("/health", "/ready")  # answered however many requests there are: orchestrators end a process that does not
OPEN = ("/health", "/ready", "/", "/page/")  # without a key: what orchestrators ask, and the page that asks for the key
BURST_SECONDS = 10  # of the rate, which a client may use up at once
DROPPED = 1 << 24  # bytes of a body that is too large
REMEMBERED = 4096  # clients whose rate is counted


class Rate:
    """Token buckets of clients: ``rate`` requests a minute each, the longest unseen client is forgotten first."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self.clock = rate / 60, clock
        self.most = max(1.0, self.rate * BURST_SECONDS)
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Take one request from a client's bucket; returns the seconds until there is one, 0 if there was."""
        now = self.clock()
        tokens, since = self.buckets.pop(client, (self.most, now))
        tokens = min(self.most, tokens + (now - since) * self.rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self.rate
        self.buckets[client] = (tokens - (not wait), now)
        if len(self.buckets) > REMEMBERED:
            self.buckets.popitem(last=False)
        return wait


@dataclass(frozen=True)
class Limits:
    """ASGI middleware that refuses before anything is parsed, and hands on a body that is there as a whole."""

    app: ASGIApp
    settings: Settings
    current: "Current"
    rate: Rate | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["path"] in WATCHED and scope["method"] in ("GET", "HEAD")):
            await self.app(scope, receive, send)
            return
        try:
            with self.current:
                body = await self._admitted(scope, receive)
                await self.app(scope, body, send)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """The request's ``receive`` with its body read; raises :class:`Refusal`."""
        headers, path = Headers(scope=scope), scope["path"]
        client = (scope.get("client") or ("unknown",))[0]
        if self.settings.keys and not _is_open(path):
            client = check_key(headers.get("authorization", ""), self.settings.keys)
        if scope["method"] != "POST":
            return receive
        if self.rate is not None and (wait := self.rate.take(client)):
            said, again = f"more than {self.settings.rate:g} requests a minute", {"Retry-After": str(int(wait) + 1)}
            raise Refusal(429, said, "rate_limit_error", code="rate_limit", headers=again)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # also what keeps pages of other sites out: a browser asks before it sends this type across origins
            raise Refusal(415, f"the content type must be application/json, got {kind[:80]!r}")
        return await whole_body(headers.get("content-length", ""), receive, self.settings)


class Current:
    """How many requests are being answered; entering beyond ``most`` raises :class:`Refusal`."""

    def __init__(self, most: int):
        self.most, self.count = most, 0

    def __enter__(self) -> None:
        if self.count >= self.most:
            again = {"Retry-After": str(RETRY_SECONDS)}
            said = f"{self.most} requests are being answered, which is the most at once"
            raise Refusal(429, said, "rate_limit_error", code="too_many_requests", headers=again)
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


def check_key(header: str, keys: Iterable[str]) -> str:
    """The client that a bearer key stands for; raises :class:`Refusal` for one that is none of ``keys``."""
    scheme, _, given = header.partition(" ")
    fits = [place for place, key in enumerate(keys) if hmac.compare_digest(key.encode(), given.strip().encode())]
    if scheme.lower() != "bearer" or not fits:
        said = "the API key is wrong" if header else "an API key is needed: send the header Authorization: Bearer KEY"
        asks = {"WWW-Authenticate": "Bearer"}
        raise Refusal(401, said, "authentication_error", code="invalid_api_key", headers=asks)
    return f"key {fits[0]}"


async def whole_body(length: str, receive: Receive, settings: Settings) -> Receive:
    """A ``receive`` that gives the body at once, read up to the limit; raises :class:`Refusal` for a larger or a slow one.

    What is beyond the limit is read and dropped, up to ``DROPPED`` bytes: a client that is still writing when its connection
    is closed does not see the answer.
    """
    most, body, size = settings.max_body, bytearray(), 0
    if length.isdecimal() and (len(length) > 18 or int(length) > DROPPED):
        raise _too_large(most, {"Connection": "close"})
    try:
        async with asyncio.timeout(settings.body_seconds):
            more = True
            while more and size <= DROPPED:
                message = await receive()
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                if size <= most:
                    body += chunk
    except TimeoutError:
        said = f"the body did not arrive within {settings.body_seconds:g} seconds"
        raise Refusal(408, said, code="slow_body", headers={"Connection": "close"}) from None
    if size > most:
        raise _too_large(most, {"Connection": "close"} if more else {})
    first: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


def _too_large(most: int, headers: dict[str, str]) -> Refusal:
    return Refusal(413, f"the body is larger than {most} bytes", code="body_too_large", headers=headers)


def _is_open(path: str) -> bool:
    return path in OPEN or (path.startswith(OPEN[-1]) and path != OPEN[-1])
