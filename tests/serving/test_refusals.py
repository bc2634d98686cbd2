"""Hostile and mistaken requests: a status below 500, one sentence with the value, and a server that goes on."""

import asyncio
import json
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from served import DRAW, counted, run

from segue.engine.scheduling.errors import DeadlineError
from segue.serving.pending import Pending
from segue.serving.schemas import ImageRequest

LONG = "x" * 5000
DEEP = "[" * 20000

# fields beside a valid prompt, status, words of the sentence
FIELDS = [
    ({"size": "100000x100000"}, 400, "size must be at most 2048 pixels in all, got '100000x100000'"),
    ({"size": "33x33"}, 400, "size '33x33' cannot be drawn: height must be a positive multiple of 4, got 33"),
    ({"size": "32x32x32"}, 400, "size is WIDTHxHEIGHT in pixels, or auto, got '32x32x32'"),
    ({"size": "0x32"}, 400, "got '0x32'"),
    ({"size": "-32x-32"}, 400, "got '-32x-32'"),
    ({"size": "٣٢x٣٢"}, 400, "size is WIDTHxHEIGHT"),
    ({"model": "../../etc/passwd"}, 404, "there is no model '../../etc/passwd' here; there is 'herbarium'"),
    ({"model": "/etc/passwd"}, 404, "there is no model '/etc/passwd' here"),
    ({"model": "herbarium\x00"}, 404, "there is no model"),
    ({"prompt": LONG}, 400, "prompt should have at most 4000 characters, got 'xxx"),
    ({"prompt": "48"}, 400, "label 48 is out of range: herbarium has classes 0 to 47"),
    ({"prompt": -1}, 400, "prompt should be"),
    ({"prompt": True}, 400, "prompt should be a valid string, got True"),
    ({"prompt": ["3"]}, 400, "prompt should be a valid string, got ['3']"),
    ({"prompt": ""}, 400, "has no class ''"),
    ({"prompt": "Acerites"}, 400, "'Acerites' names 8 classes, 0, 1, 2, 3, 4, 5, 6, 7: choose one"),
    ({"prompt": "0-23"}, 400, "has no class '0-23'"),
    ({"prompt": "9" * 3000}, 400, "has no class '999"),
    ({"negative_prompt": "a cat"}, 400, "is a class-label model and takes no negative_prompt, got 'a cat'"),
    ({"n": 0}, 400, "n should be greater than or equal to 1, got 0"),
    ({"n": 11}, 400, "n must be at most 10, got 11"),
    ({"n": 1.5}, 400, "n should be a valid integer"),
    ({"n": "2"}, 400, "n should be a valid integer, got '2'"),
    ({"steps": 10**9}, 400, "steps must be at most 200, got 1000000000"),
    ({"steps": 0}, 400, "steps should be greater than or equal to 1, got 0"),
    ({"seed": -1}, 400, "seed should be greater than or equal to 0, got -1"),
    ({"seed": 1 << 64}, 400, "seed should be less than or equal to 18446744073709551615"),
    ({"deadline": 0}, 400, "deadline should be greater than 0, got 0"),
    ({"guidance": "cgf"}, 400, "unknown guidance rule 'cgf'"),
    ({"guidance": "cfg:scale=nan"}, 400, "nan"),
    ({"guidance": "cfg:scale=1,2,3"}, 400, "a request has one rule with one of each number, got 'cfg:scale=1,2,3'"),
    ({"guidance": "none | cfg"}, 400, "unknown guidance rule"),
    ({"guidance": "slg:weight=1,layers=0-99999999"}, 400, "a range of a rule is at most 1000 long, got '0-99999999'"),
    ({"guidance": "slg:weight=1,layers=99"}, 400, "99"),
    ({"guidance": "gfcg:weight=1,classifier=/etc/passwd"}, 400, "a classifier here is one of"),
    ({"guidance": "ag:weight=1,model=/etc/passwd"}, 400, "/etc/passwd"),
    ({"guidance": LONG}, 400, "guidance should have at most 1000 characters"),
    ({"solver": "rk45"}, 400, "rk45"),
    ({"schedule": "zigzag"}, 400, "zigzag"),
    ({"response_format": "url"}, 400, "this server keeps no pictures to give a URL of"),
    ({"output_format": "gif"}, 400, "output_format should be 'png', 'jpeg' or 'webp', got 'gif'"),
    ({"output_compression": 50}, 400, "output_compression 50 is for jpeg and webp"),
    ({"output_format": "webp", "output_compression": 101}, 400, "output_compression should be less than or equal to 100"),
    ({"quality": "hd"}, 400, "quality should be 'auto', got 'hd'"),
    ({"background": "transparent"}, 400, "background should be 'auto' or 'opaque', got 'transparent'"),
    ({"partial_images": 2}, 400, "partial_images 2 is for streams: set stream to true"),
    ({"progress": True}, 400, "progress True is for streams"),
    ({"stream": True, "partial_images": 33}, 400, "partial_images should be less than or equal to 32, got 33"),
    ({"num_inference_steps": 4}, 400, "unknown field 'num_inference_steps'; it is called steps here"),
    ({"guidanse": "cfg"}, 400, "unknown field 'guidanse'; did you mean 'guidance'?"),
    ({LONG: 1}, 400, "unknown field 'xxx"),
]
# bodies as they are sent
BODIES = [
    (b"", "the body is empty; send a JSON object"),
    (b"{", "the body is not valid JSON"),
    (b'{"prompt": "3"', "the body is not valid JSON"),
    (b"null", "the body must be a JSON object, got None"),
    (b"[]", "the body must be a JSON object, got []"),
    (b'"3"', "the body"),
    (b"{}", "prompt is missing"),
    (DEEP.encode(), "the body is no JSON that can be read"),
    (b'{"prompt": ' + DEEP.encode(), "the body"),
    (b"\xff\xfe\x00", "the body"),
    (b'{"prompt": "\xff"}', "the body"),
    (b'{"prompt": "3", "deadline": Infinity}', "deadline"),
    (b'{"prompt": "3", "deadline": NaN}', "deadline"),
    (b'{"prompt": "3", "seed": ' + b"9" * 5000 + b"}", ""),
]


def sentence(answer) -> str:
    """The one sentence of a refusal in OpenAI's shape."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    message = error["message"]
    assert message and "\n" not in message and "Traceback" not in message and len(message) < 700, message
    return message


def test_every_bad_field_is_refused_before_any_work_with_the_value_that_was_given(engine):
    async def work(client):
        answers = [await client.draw(**fields) for fields, _, _ in FIELDS]
        good = await client.draw(steps=1)
        return answers, good.status_code, counted(client.serving.scheduler)

    answers, good, stats = run(work, engine)
    found = [(answer.status_code, sentence(answer)) for answer in answers]
    wrong = [
        (got, *wanted) for got, wanted in zip(found, FIELDS, strict=True) if got[0] != wanted[1] or wanted[2] not in got[1]
    ]
    assert wrong == []
    assert (good, stats.submitted, stats.finished) == (200, 1, 1)


@pytest.mark.parametrize("path", [DRAW, "/v1/images/plans"])
def test_a_body_that_is_no_json_object_is_refused(engine, path):
    async def work(client):
        headers = {"Content-Type": "application/json"}
        return [await client.post(path, content=body, headers=headers) for body, _ in bodies]

    bodies = BODIES if path == DRAW else [(body, words) for body, words in BODIES if body != b"{}"]
    for answer, (body, words) in zip(run(work, engine), bodies, strict=True):
        assert answer.status_code == 400, body[:80]
        assert path != DRAW or words in sentence(answer)


def test_other_content_types_routes_and_methods_are_refused(engine):
    async def work(client):
        plain = await client.post(DRAW, content=b'{"prompt": "3"}', headers={"Content-Type": "text/plain"})
        form = await client.post(DRAW, data={"prompt": "3"})
        return [
            plain,
            form,
            await client.get("/v1/nothing"),
            await client.get(DRAW),
            await client.get("/v1/models/..%2f..%2fetc"),
        ]

    answers = run(work, engine)
    assert [answer.status_code for answer in answers] == [415, 415, 404, 405, 404]
    assert "the content type must be application/json, got 'text/plain'" in sentence(answers[0])
    assert all(map(sentence, answers))


def test_no_path_leads_to_a_file_of_the_server(engine):
    async def work(client):
        paths = ["/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/__init__.py", "/page/", "//etc/passwd"]
        return [(await client.get(path)).status_code for path in paths]

    assert set(run(work, engine)) == {404}


def test_a_queue_that_is_full_says_when_to_come_again_and_leaves_nothing_of_the_request_behind(by_hand):
    async def work(client):
        scheduler = client.serving.scheduler
        first = asyncio.ensure_future(client.draw(n=2))
        while scheduler.stats().queued < 2:
            await asyncio.sleep(0)
        refused = await client.draw(n=2)  # its first picture fits, its second does not
        while scheduler.tick():
            pass
        return refused, await first, counted(scheduler)

    refused, first, stats = run(work, by_hand, slots=1, queue=2)
    assert (refused.status_code, refused.headers["retry-after"], first.status_code) == (429, "1", 200)
    assert refused.json()["error"]["code"] == "queue_full" and "requests wait already" in sentence(refused)
    assert (stats.finished, stats.cancelled, stats.queued, stats.running) == (2, 1, 0, 0)


@pytest.mark.parametrize(
    ("settings", "fields"), [({}, {"deadline": 1e-9}), ({"deadline": 1e-9}, {}), ({"deadline": 1e-9}, {"deadline": 60})]
)
def test_a_deadline_of_the_request_or_of_the_server_ends_it_with_504(engine, settings, fields):
    async def work(client):
        return await client.draw(**fields), counted(client.serving.scheduler)

    answer, stats = run(work, engine, **settings)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")
    assert "was not done after" in sentence(answer)
    assert (stats.expired, stats.running) == (1, 0)


def test_a_deadline_counts_from_the_request_and_not_from_the_thread_that_takes_it_up(engine):
    given = []

    def submit(*_, deadline, **__):
        given.append(deadline)
        return Future()

    async def work(client):
        order = client.serving.model.order(ImageRequest(prompt="3", deadline=50))
        for ago in (30, 60):
            await Pending.submit(SimpleNamespace(submit=submit), order, time.monotonic() - ago, client.serving.pool)

    run(work, engine)
    assert 0 < given[0] <= 20 and 0 < given[1] < 1e-6
    late = Future()
    late.set_exception(DeadlineError("the request was not done after 20 s"))
    with pytest.raises(DeadlineError, match=r"^the request was not done after 50 s$"):
        Pending([late], 50.0).finished(late)


def test_a_server_that_stops_takes_no_more_requests_and_is_not_ready(engine):
    async def work(client):
        client.serving.stop()
        return await client.get("/ready"), await client.get("/health"), await client.draw()

    ready, health, refused = run(work, engine)
    assert (ready.status_code, ready.json()) == (503, {"status": "shutting down"})
    assert health.status_code == 200
    assert (refused.status_code, sentence(refused)) == (503, "the server is shutting down")


def test_a_fault_of_the_server_tells_nothing_of_its_inside(engine, monkeypatch):
    async def work(client):
        monkeypatch.setattr(client.serving.model, "order", lambda _: 1 / 0)
        return await client.draw(), await client.get("/health")

    answer, health = run(work, engine)
    assert (answer.status_code, sentence(answer)) == (500, "the server failed on this request; its log says why")
    assert health.status_code == 200


def test_a_page_of_another_site_is_not_let_in(engine):
    """A browser asks before it sends JSON across origins, and no answer allows it."""

    async def work(client):
        asks = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        return await client.options(DRAW, headers=asks), await client.draw(steps=1)

    asked, drawn = run(work, engine)
    assert asked.status_code == 405
    assert not [name for answer in (asked, drawn) for name in answer.headers if name.startswith("access-control")]


def test_errors_of_a_stream_are_refusals_until_it_begins(engine):
    async def work(client):
        return await client.draw(stream=True, size="1x1")

    answer = run(work, engine)
    assert answer.status_code == 400 and json.loads(answer.text)["error"]["param"] == "size"
