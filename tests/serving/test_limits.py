"""What stands before the routes: bodies, keys, rates, and how many requests at once."""

import asyncio

import pytest
from served import DRAW, run

from segue.serving.limits import Current, Rate, whole_body
from segue.serving.refusals import Refusal
from segue.serving.settings import Settings, is_loopback

KEY, OTHER = "k" * 16, "another key of 32 characters ---".replace(" ", "-")
JSON = {"Content-Type": "application/json"}


def test_a_body_beyond_the_limit_is_dropped_and_refused_and_not_read_for_ever(engine):
    sent = []

    async def megabytes():
        for _ in range(1000):
            sent.append(1)
            yield b" " * 1_000_000

    async def work(client):
        told = await client.post(DRAW, content=b" " * 2_000_000, headers=JSON)
        unknown = await client.post(DRAW, content=megabytes(), headers=JSON)
        huge = await client.post(DRAW, content=b"{}", headers=JSON | {"Content-Length": "9" * 40})
        edge = await client.post("/v1/images/plans", content=b"{}".ljust(4096), headers=JSON)
        return [told, unknown, huge, edge]

    answers = run(work, engine, max_body=4096)
    assert [answer.status_code for answer in answers] == [413, 413, 413, 200]
    assert answers[0].json()["error"]["message"] == "the body is larger than 4096 bytes"
    assert len(sent) == 17, "16 MiB were read"
    assert ["connection" in answer.headers for answer in answers] == [False, True, True, False]


def test_a_body_that_does_not_come_is_not_waited_for():
    async def silent():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Refusal, match="the body did not arrive within 1e-09 seconds") as refused:
        asyncio.run(whole_body("5", silent, Settings(body_seconds=1e-9)))
    assert refused.value.status == 408


async def until_ready(client):
    while not client.serving.ready:
        await asyncio.sleep(0)


def test_health_is_answered_however_many_requests_there_are(engine):
    async def work(client):
        begun, over = asyncio.Event(), asyncio.Event()

        async def slow():
            begun.set()
            await over.wait()
            yield b"{}"

        await until_ready(client)
        waiting = asyncio.ensure_future(client.post("/v1/images/plans", content=slow(), headers=JSON))
        await begun.wait()
        statuses = [(await client.get(path)).status_code for path in ("/health", "/ready", "/v1/models")]
        over.set()
        return statuses, (await waiting).status_code

    assert run(work, engine, max_requests=1) == ([200, 200, 429], 200)


def test_a_server_whose_scheduler_has_ended_is_not_ready(engine):
    async def work(client):
        await until_ready(client)
        before = await client.get("/ready")
        client.serving.scheduler._give_up(RuntimeError("a fault of the device"))
        after, health = await client.get("/ready"), await client.get("/health")
        return before, after, health, await client.draw()

    before, after, health, refused = run(work, engine)
    assert (before.status_code, after.status_code, health.status_code) == (200, 503, 200)
    assert after.json() == {"status": "broken"}
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "broken")
    assert "has to be started again" in refused.json()["error"]["message"] and "retry-after" not in refused.headers


def test_without_the_right_key_only_health_and_the_page_are_open(engine):
    async def work(client):
        statuses = {}
        for path in ("/health", "/", "/page/page.js", "/v1/models", "/metrics", "/openapi.json"):
            statuses[path] = (await client.get(path)).status_code
        keys = [None, KEY + "x", "", KEY, OTHER, "ключ"]
        headers = [{} if key is None else {"Authorization": f"Bearer {key}".encode()} for key in keys]
        tried = [(await client.get("/v1/models", headers=one)) for one in headers]
        basic = await client.get("/v1/models", headers={"Authorization": f"Basic {KEY}"})
        return statuses, tried, basic

    statuses, tried, basic = run(work, engine, keys=(KEY, OTHER))
    assert statuses == {
        "/health": 200,
        "/": 200,
        "/page/page.js": 200,
        "/v1/models": 401,
        "/metrics": 401,
        "/openapi.json": 401,
    }
    assert [answer.status_code for answer in tried] == [401, 401, 401, 200, 200, 401]
    assert basic.status_code == 401
    assert tried[0].json()["error"]["message"].startswith("an API key is needed")
    assert tried[1].json()["error"] == {
        "message": "the API key is wrong",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }


def test_a_client_beyond_its_rate_is_told_when_to_come_again(engine):
    async def work(client):
        return [await client.post("/v1/images/plans", json={}, headers={"Authorization": f"Bearer {key}"}) for key in keys]

    keys = [KEY, KEY, OTHER, KEY]
    answers = run(work, engine, rate=1e-3, keys=(KEY, OTHER))
    assert [answer.status_code for answer in answers] == [200, 429, 200, 429]
    assert answers[1].json()["error"]["code"] == "rate_limit"
    assert 59_000 < int(answers[1].headers["retry-after"]) <= 60_000


def test_a_rate_lets_a_burst_through_and_then_its_number_a_minute():
    now = 0.0
    rate = Rate(60, clock=lambda: now)
    assert [rate.take("a") for _ in range(11)] == [0.0] * 10 + [1.0]
    assert rate.take("b") == 0
    passed = []
    for second in range(1, 61):
        now = float(second)
        passed += [wait for wait in (rate.take("a"), rate.take("a")) if not wait]
    assert len(passed) == 60
    now = 1e6
    assert [rate.take("a") for _ in range(11)][-1] > 0, "a long absence saves no more than a burst"


def test_the_rates_of_any_number_of_clients_take_bounded_memory():
    rate = Rate(60, clock=lambda: 0.0)
    for client in range(10_000):
        rate.take(str(client))
    assert len(rate.buckets) == 4096


def test_more_requests_at_once_than_may_be_are_refused_and_the_count_comes_back():
    current = Current(2)
    with current, current:
        with pytest.raises(Refusal, match="2 requests are being answered") as refused, current:
            pass
        assert refused.value.status == 429
    with pytest.raises(KeyError), current:
        raise KeyError
    assert current.count == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slots": 0}, "slots must be a number above 0, got 0"),
        ({"rate": -1.0}, "rate must be a number above 0, got -1.0"),
        ({"deadline": float("nan")}, "deadline must be a number above 0, got nan"),
        ({"max_body": -5}, "max-body must be a number above 0, got -5"),
        ({"keys": ("short",)}, "at least 16 ASCII characters and no spaces, not so key 1"),
        ({"keys": (KEY, "with space in the key")}, "not so key 2"),
        ({"name": " "}, "the name of a model must not be empty, got ' '"),
    ],
)
def test_settings_that_cannot_be_say_why_and_show_no_key(options, words):
    with pytest.raises(ValueError, match=words) as refused:
        Settings(**options)
    assert not [key for key in options.get("keys", ()) if key in str(refused.value)]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.8.8.8", True),
        ("0.0.0.0", False),
        ("::", False),
        ("a", False),
    ],
)
def test_which_addresses_other_machines_reach(host, loopback):
    assert is_loopback(host) is loopback
