"""A model that takes prompts is served by the same routes: prompts, negative prompts, sizes in pixels."""

import json

import pytest
from served import MOST_LEVELS, differ, picture_of, run
from tiny_sd3 import tiny_pipeline

from segue.engine.engine import Engine
from segue.engine.images import RECORD_CHUNK


@pytest.fixture(scope="module")
def prompts():
    return Engine.from_pipe(tiny_pipeline("sd3.5-medium"))


def test_a_picture_of_a_prompt_is_that_of_generate(prompts):
    fields = {"prompt": "a leaf", "negative_prompt": "a cat", "guidance": "cfg:scale=3", "steps": 3, "seed": 5}

    async def work(client):
        return (await client.draw(**fields)).json()

    answer = run(work, prompts)
    alone = prompts.generate("a leaf", "a cat", "cfg:scale=3", steps=3, seeds=[5]).images[0]
    found = picture_of(answer["data"][0])
    assert differ(found, alone) <= MOST_LEVELS
    assert answer["size"] == f"{alone.width}x{alone.height}"


def test_a_size_is_in_pixels_and_what_cannot_be_drawn_is_refused(prompts):
    factor = prompts.pipe.vae_scale_factor * prompts.spec.patch
    width, height = 3 * factor, 2 * factor

    async def work(client):
        good = await client.draw(prompt="a leaf", size=f"{width}x{height}", seed=1)
        return good, await client.draw(prompt="a leaf", size=f"{width + 1}x{height}"), await client.draw(prompt=" ")

    good, bad, empty = run(work, prompts)
    assert picture_of(good.json()["data"][0]).size == (width, height)
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "size")
    assert f"width must be a positive multiple of {factor}, got {width + 1}" in bad.json()["error"]["message"]
    assert (empty.status_code, empty.json()["error"]["message"]) == (400, "prompt is a text, got ' '")


def test_a_pipeline_of_this_process_without_a_source_still_records_its_rule(prompts):
    async def work(client):
        return (await client.draw(prompt="a leaf", seed=2, guidance="cfg:scale=2")).json()

    record = json.loads(picture_of(run(work, prompts)["data"][0]).info[RECORD_CHUNK])
    assert (record["rule"], record["prompts"], record["seeds"]) == ("cfg:scale=2", ["a leaf"], [2])
