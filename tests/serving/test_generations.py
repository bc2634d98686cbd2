"""Pictures over HTTP are those of the engine, by OpenAI's fields and by Segue's."""

import asyncio
import io
import json
from base64 import b64decode

import pytest
from PIL import Image
from served import DRAW, MOST_LEVELS, differ, picture_of, run

from segue.engine.images import PARAMETERS_CHUNK, RECORD_CHUNK
from segue.engine.records.provenance import Record
from segue.serving.encoded import wants_file
from segue.serving.refusals import Refusal
from segue.serving.schemas import ImageRequest


def drawn(engine, label, seed, guidance=None, **options):
    """The picture that the engine draws alone."""
    return engine.sample([label], guidance, seeds=[seed], **{"steps": 3} | options).images[0]


def test_a_picture_is_that_of_the_engine_and_carries_how_it_was_drawn(engine):
    async def work(client):
        return (await client.draw(seed=11, guidance="cfg:scale=2")).json()

    answer = run(work, engine)
    found = picture_of(answer["data"][0])
    assert differ(found, drawn(engine, 3, 11, "cfg:scale=2")) <= MOST_LEVELS
    record = Record.from_dict(json.loads(found.info[RECORD_CHUNK]), "the answer")
    rule, plan = record.resolve(engine)
    assert (rule.text, record.labels, record.seeds, plan.calls) == ("cfg:scale=2", [3], [11], 3)
    assert "Seed: 11" in found.info[PARAMETERS_CHUNK]
    told = {name: answer[name] for name in ("size", "output_format", "quality", "background")}
    assert told == {"size": "32x32", "output_format": "png", "quality": "auto", "background": "opaque"}
    assert answer["segue"]["evaluations"] == engine.plan("cfg:scale=2", 3).cost.evaluations


@pytest.mark.parametrize("prompt", ["3", 3, "Acerites dentata", "acerites DENTATA"])
def test_a_class_is_named_or_numbered(engine, prompt):
    async def work(client):
        return (await client.draw(prompt=prompt, seed=2)).json()

    assert differ(picture_of(run(work, engine)["data"][0]), drawn(engine, 3, 2)) <= MOST_LEVELS


def test_several_pictures_have_seeds_that_count_up_to_the_last_of_64_bits(engine):
    async def work(client):
        return (await client.draw(n=3, seed=(1 << 64) - 2)).json()["data"]

    data = run(work, engine)
    seeds = [(1 << 64) - 2, (1 << 64) - 1, 0]
    assert [one["seed"] for one in data] == seeds
    for one, seed in zip(data, seeds, strict=True):
        assert differ(picture_of(one), drawn(engine, 3, seed)) <= MOST_LEVELS


def test_a_seed_that_is_not_given_is_told(engine):
    async def work(client):
        first, second = [(await client.draw()).json()["data"][0] for _ in range(2)]
        return first, second, (await client.draw(seed=first["seed"])).json()["data"][0]

    first, second, again = run(work, engine)
    assert first["seed"] != second["seed"]
    assert differ(picture_of(first), picture_of(again)) == 0


def test_requests_of_different_rules_and_steps_that_run_together_are_each_their_own(engine):
    wanted = [(label, seed, rule, steps) for seed, (label, rule, steps) in enumerate(
        [(0, "none", 2), (5, "cfg:scale=3", 5), (9, "sgg", 6), (23, "slg", 7), (1, "cfg:scale=2 + rescale:phi=0.7", 3)]
    )]  # fmt: skip

    async def work(client):
        asked = [client.draw(prompt=label, seed=seed, guidance=rule, steps=steps) for label, seed, rule, steps in wanted]
        return [answer.json() for answer in await asyncio.gather(*asked)]

    for (label, seed, rule, steps), answer in zip(wanted, run(work, engine), strict=True):
        assert differ(picture_of(answer["data"][0]), drawn(engine, label, seed, rule, steps=steps)) <= MOST_LEVELS


@pytest.mark.parametrize(("kind", "name"), [("webp", "WEBP"), ("jpeg", "JPEG")])
def test_other_formats_are_what_they_say_and_obey_their_compression(engine, kind, name):
    async def work(client):
        asked = [client.draw(seed=1, output_format=kind, output_compression=quality) for quality in (5, 100)]
        return [(await answer).json()["data"][0] for answer in asked]

    poor, good = run(work, engine)
    assert [Image.open(io.BytesIO(b64decode(one["b64_json"]))).format for one in (poor, good)] == [name, name]
    exact = drawn(engine, 3, 1)
    assert differ(picture_of(poor), exact) > differ(picture_of(good), exact)
    assert len(poor["b64_json"]) < len(good["b64_json"])


def test_a_client_that_accepts_a_picture_gets_the_file_of_the_answer(engine):
    async def work(client):
        body = {"prompt": "3", "steps": 3, "seed": 6}
        inside = (await client.post(DRAW, json=body)).json()["data"][0]
        answers = [
            await client.post(DRAW, json=body | fields, headers={"Accept": accept})
            for accept, fields in (
                ("image/png", {}),
                ("image/*", {"output_format": "webp"}),
                ("image/webp", {}),
                ("image/png", {"n": 2}),
                ("image/png", {"stream": True}),
            )
        ]
        return inside, answers

    inside, (plain, webp, *refused) = run(work, engine)
    assert plain.content == b64decode(inside["b64_json"])
    assert (plain.headers["content-type"], plain.headers["x-segue-seed"]) == ("image/png", "6")
    assert (webp.headers["content-type"], webp.content[8:12]) == ("image/webp", b"WEBP")
    assert [answer.status_code for answer in refused] == [406, 400, 400]


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, image/png;q=0.9", False),
        ("text/html,application/xml;q=0.9,image/avif,*/*;q=0.8", False),
        ("image/png", True),
        ("Image/PNG", True),
        ("image/webp,image/png", True),
        ("image/png;q=0.9", True),
        ("image/*;q=0.5, application/json;q=0.1", True),
        ("image/png, */*;q=0.1", True),
        ("image/webp, application/json;q=0.5", False),
        ("image/webp", None),
        ("image/webp;q=0.9, image/png;q=0", None),
        ("image/*, image/png;q=0", None),
    ],
)
def test_the_header_accept_is_read_as_a_list_with_qualities(accept, wants):
    request = ImageRequest(prompt="3")
    if wants is None:
        with pytest.raises(Refusal, match="the picture is image/png, and the header Accept asks for") as refused:
            wants_file(accept, request)
        assert refused.value.status == 406
    else:
        assert wants_file(accept, request) is wants


def test_another_size_is_drawn_in_that_size(engine):
    async def work(client):
        return (await client.draw(seed=4, size="36x28")).json()

    answer = run(work, engine)
    assert answer["size"] == "36x28"
    assert differ(picture_of(answer["data"][0]), drawn(engine, 3, 4, width=36, height=28)) <= MOST_LEVELS


def test_a_solver_and_levels_are_those_of_the_request(engine):
    async def work(client):
        return (await client.draw(seed=4, solver="heun", schedule="karras", guidance="none")).json()

    answer = run(work, engine)
    assert answer["segue"]["calls"] == engine.plan(None, 3, "karras", "heun").calls
    alone = drawn(engine, 3, 4, None, solver="heun", schedule="karras")
    assert differ(picture_of(answer["data"][0]), alone) <= MOST_LEVELS


def test_fields_that_are_null_are_as_left_out(engine):
    nothing = dict.fromkeys(("n", "size", "output_format", "stream", "partial_images", "guidance", "deadline", "user"))

    async def work(client):
        return [(await client.draw(seed=5, **fields)).json()["data"][0] for fields in ({}, nothing)]

    first, second = run(work, engine)
    assert first == second


def test_the_rule_of_requests_that_name_none_is_that_of_the_server(engine):
    async def work(client):
        return [(await client.draw(**fields)).json()["segue"]["guidance"] for fields in ({}, {"guidance": "none"})]

    assert run(work, engine, guidance="cfg:scale=1.5") == ["cfg:scale=1.5", "none"]
    with pytest.raises(ValueError, match="unknown guidance rule 'cgf'"):
        run(work, engine, guidance="cgf")


def test_a_model_says_what_it_offers_and_each_cost_is_that_of_the_plan(engine):
    async def work(client):
        models, one = (await client.get("/v1/models")).json(), (await client.get("/v1/models/herbarium")).json()
        return models, one

    models, one = run(work, engine)
    assert models == {"object": "list", "data": [one]}
    assert (one["id"], one["object"], one["owned_by"]) == ("herbarium", "model", "segue")
    offered = one["segue"]
    assert offered["classes"] == list(engine.spec.class_names)
    assert {"none", "cfg", "slg", "sgg", "exit"} <= {rule["name"] for rule in offered["rules"]}
    for rule in offered["rules"]:
        cost = engine.plan(rule["guidance"]).cost
        assert (rule["evaluations"], rule["relative_cost"]) == (cost.evaluations, round(cost.relative, 4))


def test_a_plan_says_which_branches_run_when_without_drawing(engine):
    async def work(client):
        answer = await client.post("/v1/images/plans", json={"guidance": "cfg:scale=2,window=steps:1-3", "steps": 7})
        return answer.json(), client.serving.scheduler.stats().submitted

    plan, submitted = run(work, engine)
    assert plan["runs"] == [{"calls": 3, "branches": ["cond", "uncond"]}, {"calls": 4, "branches": ["cond"]}]
    assert (plan["calls"], plan["evaluations"], submitted) == (7, 10, 0)
