"""A thousand requests of every kind at once and after another: nothing leaks, nothing is stuck, no picture is wrong."""

import asyncio
import gc
import random
import threading
from collections import Counter

import httpx
import pytest
from PIL import Image
from served import DRAW, MOST_LEVELS, counted, differ, events_of, listening, picture_of

from segue.engine.records.sample_run import SampleRun
from segue.engine.scheduling.drawing import Drawing
from segue.engine.scheduling.lane_runs import LinearRun, ProgramRun
from segue.engine.scheduling.request import Request
from segue.engine.scheduling.solo import SoloRun
from segue.serving.events import Events, Inbox
from segue.serving.pending import Pending
from segue.serving.served_model import Order

HELD = (Request, Drawing, Pending, Events, Inbox, Order, LinearRun, ProgramRun, SoloRun, SampleRun, Image.Image)
REQUESTS, AT_ONCE, WAVES = 1000, 24, 2
RULES = ("none", "cfg:scale=1.5", "cfg:scale=3,window=steps:1-2", "sgg:switch=0.5", "slg", "cfg:scale=2 + rescale:phi=0.7")
BAD = ({"steps": 0}, {"size": "7x7"}, {"guidance": "cgf"}, {"prompt": "x" * 9000}, {"nonsense": 1}, {"model": "/etc/passwd"})
KINDS = Counter(good=40, stream=15, cancel=15, gone=10, deadline=10, bad=10)


def fields_of(draws: random.Random) -> dict:
    """A request for one of a few pictures, so that each is drawn often."""
    return {
        "prompt": str(draws.randrange(2)),
        "seed": draws.randrange(2),
        "steps": draws.choice((3, 4)),
        "guidance": draws.choice(RULES),
    }


async def asked(client: httpx.AsyncClient, kind: str, draws: random.Random) -> tuple[str, dict, object]:
    """One request of a kind: what it was, and the status or the picture that it got."""
    fields = fields_of(draws)
    if kind == "bad":
        return kind, fields, (await client.post(DRAW, json=fields | draws.choice(BAD))).status_code
    if kind == "deadline":
        return kind, fields, (await client.post(DRAW, json=fields | {"deadline": draws.choice((1e-9, 1e-2))})).status_code
    if kind == "gone":  # before, while or after it is drawn
        waiting = asyncio.ensure_future(client.post(DRAW, json=fields | {"steps": 20}))
        for _ in range(draws.randrange(100)):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        return kind, fields, None
    if kind == "cancel":
        async with client.stream("POST", DRAW, json=fields | {"steps": 20, "stream": True, "progress": True}) as answer:
            async for _ in answer.aiter_text():
                break
        return kind, fields, None
    if kind == "stream":
        answer = await client.post(DRAW, json=fields | {"stream": True, "partial_images": 2, "progress": True})
        return kind, fields, picture_of(events_of(answer.text)[-1])
    return kind, fields, picture_of((await client.post(DRAW, json=fields)).json()["data"][0])


async def wave(url: str, seed: int) -> list[tuple[str, dict, object]]:
    """As many requests as a wave has, some at a time."""
    draws = random.Random(seed)
    kinds = draws.choices(list(KINDS), list(KINDS.values()), k=REQUESTS // WAVES)
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(kind: str) -> tuple[str, dict, object]:
            async with places:
                return await asked(client, kind, random.Random(draws.random()))

        return await asyncio.gather(*map(one, kinds))


def held() -> Counter:
    """Objects that a request holds, by type."""
    gc.collect()
    return Counter(kind.__name__ for one in gc.get_objects() for kind in HELD if type(one) is kind)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::segue.PlanWarning")  # rules whose windows end early are among them
def test_a_thousand_requests_with_cancels_deadlines_bad_input_and_disconnects(engine, seed):
    alone = {}

    def expected(fields):
        key = tuple(sorted(fields.items()))
        if key not in alone:
            label, rule = int(fields["prompt"]), fields["guidance"]
            alone[key] = engine.sample([label], rule, seeds=[fields["seed"]], steps=fields["steps"]).images[0]
        return alone[key]

    with listening(engine, slots=6, queue=2 * AT_ONCE) as (url, server):
        scheduler = server.config.app.state.serving.scheduler
        before, found = held(), []
        for number in range(WAVES):
            found += asyncio.run(wave(url, seed + number))
        text = httpx.get(f"{url}/metrics").text  # behind whatever the loop still had to do
        stats = counted(scheduler)
        after, threads = held(), threading.active_count()
    assert Counter(kind for kind, _, _ in found).keys() == KINDS.keys() and len(found) == REQUESTS
    assert {status for kind, _, status in found if kind == "bad"} <= {400, 404}
    assert {status for kind, _, status in found if kind == "deadline"} <= {200, 504}
    wrong = [
        fields for kind, fields, got in found if kind in ("good", "stream") and differ(got, expected(fields)) > MOST_LEVELS
    ]
    assert wrong == []
    assert (stats.running, stats.queued) == (0, 0)
    assert stats.failed == 0 and stats.refused == 0 and stats.cancelled > 0 and stats.expired > 0
    assert sum((after - before).values()) <= 2 * 6, f"{after - before} are held of {REQUESTS} requests"
    assert 'segue_http_requests_total{route="/v1/images/generations",status="500"}' not in text
    assert threads < 20
