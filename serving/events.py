"""A request as server-sent events: previews, progress, and each picture when it is finished."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .encoded import encoded
from .pending import Pending
from .refusals import fault, refusal_of
from .schemas import ImageRequest

PARTIAL, COMPLETED, PROGRESS, ERROR = (
    "image_generation.partial_image",
    "image_generation.completed",
    "segue.progress",
    "error",
)
ALIVE = ": alive\n\n"  # a comment, which clients leave out: proxies close connections that are silent


def frame(kind: str, data: dict[str, Any]) -> str:
    """One event as it is sent."""
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def previews_every(calls: int, wanted: int) -> int:
    """Every how many calls there is a preview, so that there are at most ``wanted`` before the last call; 0: none."""
    return -(-calls // (wanted + 1)) if wanted else 0


@dataclass(eq=False)
class News:
    """What is heard of the picture at a place: its progress, or the request itself when it has ended."""

    place: int
    said: Any


class Inbox:
    """What the scheduler's thread says of pictures, in order, for the event loop.

    Of each picture the newest preview alone is kept: one that nobody has read leaves its progress when the next one comes, so
    that a client which reads slowly holds one preview of each and misses the others.
    """

    def __init__(self) -> None:
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[News]()
        self.previews: dict[int, News] = {}  # that nobody has read, by place

    def put(self, place: int, said: Any) -> None:
        """From any thread; nothing is kept for a loop that has ended."""
        try:
            self.loop.call_soon_threadsafe(self._take, News(place, said))
        except RuntimeError:
            if not self.loop.is_closed():
                raise

    def _take(self, news: News) -> None:
        if getattr(news.said, "picture", None) is not None:
            if (older := self.previews.get(news.place)) is not None:
                older.said = replace(older.said, picture=None)
            self.previews[news.place] = news
        self.queue.put_nowait(news)

    async def next(self, heartbeat: float) -> News | None:
        """The next news, None where there is none for ``heartbeat`` seconds."""
        try:
            async with asyncio.timeout(heartbeat):
                news = await self.queue.get()
        except TimeoutError:
            return None
        if self.previews.get(news.place) is news:
            del self.previews[news.place]
        return news


class Events:
    """The events of one request; ``common`` is what all pictures say, ``completed(run)`` the data of a finished one.

    ``thread(function, *arguments)`` runs what takes longer than the event loop may wait.
    """

    def __init__(
        self,
        pending: Pending,
        inbox: Inbox,
        common: dict[str, Any],
        request: ImageRequest,
        thread: Callable[..., Awaitable[Any]],
        completed: Callable[[Any], dict[str, Any]],
    ):
        self.pending, self.inbox, self.common, self.request = pending, inbox, common, request
        self.thread, self.completed = thread, completed
        self.wanted = request.partial_images or 0
        self.sent = [0] * len(pending.requests)

    async def frames(self, heartbeat: float) -> AsyncIterator[str]:
        """Every event until the last picture or the first failure, which is an event too: the status is long sent."""
        left = len(self.pending.requests)
        try:
            while left:
                news = await self.inbox.next(heartbeat)
                if news is None:
                    yield ALIVE
                    continue
                if news.said is self.pending.requests[news.place]:
                    left -= 1
                    text, news = frame(COMPLETED, await self._finished(news.place, news.said)), None
                    yield text
                    continue
                if self.request.progress:
                    yield frame(PROGRESS, self._progress(news.place, news.said))
                if self._shows(news):
                    text, news = frame(PARTIAL, await self._partial(news.place, news.said.picture)), None
                    yield text
        except Exception as error:
            refusal = refusal_of(error)
            yield frame(ERROR, (refusal or fault()).body())
            if refusal is None:
                raise

    def _shows(self, news: News) -> bool:
        """Whether there is a preview in the news, and one more is wanted."""
        said = news.said
        return said.picture is not None and said.call < said.calls and self.sent[news.place] < self.wanted

    async def _finished(self, place: int, request: Any) -> dict[str, Any]:
        data = await self.thread(self.completed, self.pending.finished(request))
        self.pending.forget(place)
        return {"type": COMPLETED, "created_at": int(time.time())} | self.common | data | {"index": place}

    async def _partial(self, place: int, picture: Any) -> dict[str, Any]:
        number = self.sent[place]
        self.sent[place] += 1
        data = base64.b64encode(await self.thread(encoded, picture, self.request)).decode()
        told = {"b64_json": data, "partial_image_index": number, "index": place}
        return {"type": PARTIAL, "created_at": int(time.time())} | self.common | told

    def _progress(self, place: int, said: Any) -> dict[str, Any]:
        numbers = {name: getattr(said, name) for name in ("call", "calls", "step", "steps")}
        return {"type": PROGRESS, "index": place, "sigma": float(said.sigma)} | numbers


class EventStream(StreamingResponse):
    """Events that are given up when their client goes, also before the first is sent."""

    def __init__(self, events: Events, heartbeat: float):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second for nginx, which would collect them
        super().__init__(events.frames(heartbeat), media_type="text/event-stream", headers=headers)
        self.pending = events.pending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.pending.cancel()
